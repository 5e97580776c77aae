#include "plan/array4.h"

namespace resfuse {

namespace {

// Of a dimension of one element the stride says nothing.
bool fits(index_t size, index_t stride, index_t want) { return size == 1 || stride == want; }

}  // namespace

bool is_dense_nchw(const Array4& a) {
    const auto [n, c, h, w] = a.shape;
    return fits(w, a.strides[3], 1) && fits(h, a.strides[2], w) && fits(c, a.strides[1], h * w) &&
           fits(n, a.strides[0], c * h * w);
}

Tensor to_planes(const Array4& a) {
    const auto [n, c, h, w] = a.shape;
    return {static_cast<std::byte*>(a.data), c * h * w, w, 1, h * w, a.type};
}

bool is_dense_nhwc(const Array4& a) {
    const auto [n, c, h, w] = a.shape;
    return fits(c, a.strides[1], 1) && fits(w, a.strides[3], c) && fits(h, a.strides[2], w * c) &&
           fits(n, a.strides[0], h * w * c);
}

Tensor to_tensor(const Array4& a) {
    const auto [n, c, h, w] = a.shape;
    if (is_dense_nhwc(a)) return {static_cast<std::byte*>(a.data), h * w * c, w * c, c, 1, a.type};
    return {static_cast<std::byte*>(a.data), a.strides[0], a.strides[2], a.strides[3], a.strides[1], a.type};
}

}  // namespace resfuse
