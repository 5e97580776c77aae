// What the core found on this machine.
#include <omp.h>
#include <pybind11/stl.h>

#include "bindings/register.h"
#include "machine/cgroup.h"
#include "machine/dispatch.h"
#include "machine/handover.h"
#include "machine/peak.h"
#include "machine/threads.h"
#include "memory/heap.h"

namespace py = pybind11;
using namespace resfuse;

void register_info(py::module_& m) {
    m.def("active_isa", [] { return std::string(isa_name(active_isa())); }, "Instruction-set level in use.");
    m.def("available_isas", &available_isas, "Instruction-set levels of this CPU, lowest first.");
    m.def(
        "kernel_table",
        [](const std::string& isa) {
            const KernelTable& kernels = kernels_of(parse_isa(isa));
            py::dict table;
            table["name"] = kernels.name;
            table["vector_floats"] = kernels.vector_floats;
            table["tile_rows"] = kernels.tile_rows;
            table["tile_cols"] = kernels.tile_cols;
            table["multiplies_bytes"] = kernels.int8.operand_bytes == 1;
            table["multiplies_bf16"] = kernels_of(kernels, DType::bf16).pair_gemm != nullptr;
            return table;
        },
        py::arg("isa"),
        "Kernels that a level runs: name, floats per vector, register tile, and whether its instructions multiply "
        "bytes and bf16; else these are multiplied as words and in fp32.");
    m.def(
        "kernel_types",
        [](const std::string& isa) {
            const KernelTable& kernels = kernels_of(parse_isa(isa));
            py::dict types;
            for (int t = 0; t < kDTypes; ++t) {
                const DType type = static_cast<DType>(t);
                std::vector<std::string> uses;
                if (computes(kernels, type)) uses.push_back("programs");
                if (kernels_of(kernels, type).norm_grad) uses.push_back("training");
                if (kernels_of(kernels, type).pool_sum) uses.push_back("global average pooling");
                types[type_name(type)] = uses;
            }
            return types;
        },
        py::arg("isa"), "What a level has kernels for, by the type of feature maps' elements.");
    m.def(
        "cache_bytes", [] { return py::make_tuple(cache_sizes().l2, cache_sizes().l3); },
        "(L2 per core, L3) in bytes.");
    m.def("measure_clock", &measure_clock, "Cycles per second of this core, measured.");
    m.def(
        "measure_multiply_adds",
        [](int threads) {
            const KernelTable& kernels = kernels_of(active_isa());
            const py::gil_scoped_release release;
            return measure_multiply_adds(kernels, threads);
        },
        py::arg("threads"), "Multiply-adds per second of all threads together, on registers, measured.");
    m.def("measure_handover", &measure_handover, py::arg("threads"), py::call_guard<py::gil_scoped_release>(),
          "Seconds that a cache line takes from the first thread's core to the last one's, measured; 0: one thread.");
    m.def(
        "openmp_max_threads", [] { return omp_get_max_threads(); },
        "Threads of the OpenMP runtime that the core runs on.");
    m.def("usable_threads", &usable_threads, py::arg("wanted"),
          "Threads that the core uses where `wanted` are asked for: fewer under a CPU quota or after a fork.");
    m.def("cpu_quota", &cpu_quota, "CPUs' time that this process's control group grants; 0: no limit.");
    m.def("cgroup_cpus", &cgroup_cpus, py::arg("root"), py::arg("membership"),
          "The same, of another root and another /proc/PID/cgroup.");
    m.def(
        "heap_bytes", [] { return py::make_tuple(Heap::global().used_bytes(), Heap::global().mapped_bytes()); },
        "(in use, mapped) bytes of the heap of large blocks.");
}
