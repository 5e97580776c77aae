// Global average pooling on raw addresses: the one place of the core that takes them, because a call on a small tensor
// has to cost a few microseconds. The caller (resfuse.engine.pooling) has checked what they point to.
#include "pool/global_avg_pool.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>

#include "bindings/register.h"

namespace py = pybind11;
using namespace resfuse;

namespace {

constexpr index_t kReleaseBytes = 1 << 20;  // below, letting go of the GIL costs more than others gain

using Four = std::array<index_t, 4>;

StridedImages images_of(int dtype, const Four& shape, const Four& strides) {
    if (dtype < 0 || dtype > static_cast<int>(DType::fp16))
        throw py::value_error("dtype: got " + std::to_string(dtype));
    return {static_cast<DType>(dtype), shape, strides};
}

template <class F>
void without_gil(index_t bytes, F f) {
    if (bytes < kReleaseBytes) return f();
    const py::gil_scoped_release release;
    f();
}

const KernelTable& kernels_by_name(const std::optional<std::string>& isa) {
    return kernels_of(isa ? parse_isa(*isa) : active_isa());
}

}  // namespace

void register_global_avg_pool(py::module_& m) {
    m.def(
        "global_avg_pool",
        [](std::uintptr_t x, int dtype, const Four& shape, const Four& strides, std::uintptr_t y, int threads,
           const std::optional<std::string>& isa) {
            const StridedImages images = images_of(dtype, shape, strides);
            without_gil(images.bytes(), [&] {
                global_avg_pool(kernels_by_name(isa), reinterpret_cast<const void*>(x), images,
                                reinterpret_cast<void*>(y), threads);
            });
        },
        py::arg("x"), py::arg("dtype"), py::arg("shape"), py::arg("strides"), py::arg("y"), py::arg("threads"),
        py::arg("isa") = py::none(), "Means over the pixels of x [N, C, H, W] into y, dense [N, C].");
    m.def(
        "global_avg_pool_backward",
        [](std::uintptr_t grad, const std::array<index_t, 2>& grad_strides, std::uintptr_t dx, int dtype,
           const Four& shape, const Four& strides, int threads, const std::optional<std::string>& isa) {
            const StridedImages images = images_of(dtype, shape, strides);
            without_gil(images.bytes(), [&] {
                global_avg_pool_backward(kernels_by_name(isa), reinterpret_cast<const void*>(grad), grad_strides,
                                         reinterpret_cast<void*>(dx), images, threads);
            });
        },
        py::arg("grad"), py::arg("grad_strides"), py::arg("dx"), py::arg("dtype"), py::arg("shape"), py::arg("strides"),
        py::arg("threads"), py::arg("isa") = py::none(),
        "Every pixel of dx [N, C, H, W] becomes its channel's gradient over H * W.");
    m.def(
        "read_all",
        [](const py::buffer& buffer, int threads) {
            const py::buffer_info info = buffer.request();
            const py::gil_scoped_release release;
            return read_all(kernels_of(active_isa()), info.ptr, info.size * info.itemsize, threads);
        },
        py::arg("buffer"), py::arg("threads"), "A checksum of a dense buffer: a plain parallel read, to compare with.");
}
