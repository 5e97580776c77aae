#include "deploy/outputs.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>

namespace resfuse {

namespace {

constexpr std::array<const char*, 4> kHeads = {"softmax", "log_softmax", "sigmoid", "argmax"};

// The channels of one pixel, `stride` floats apart.
void apply(Head head, float* x, index_t channels, index_t stride) {
    if (head == Head::sigmoid) {
        for (index_t c = 0; c < channels; ++c) x[c * stride] = 1.0f / (1.0f + std::exp(-x[c * stride]));
        return;
    }
    index_t largest = 0;
    for (index_t c = 0; c < channels; ++c) {
        if (std::isnan(x[largest * stride])) break;  // as torch: the first NaN is the largest
        if (x[c * stride] > x[largest * stride] || std::isnan(x[c * stride])) largest = c;
    }
    if (head == Head::argmax) {
        x[0] = static_cast<float>(largest);  // exact: a pixel has fewer channels than 2^24 (read by the model)
        return;
    }
    const double most = static_cast<double>(x[largest * stride]);
    double sum = 0.0;
    for (index_t c = 0; c < channels; ++c) sum += std::exp(static_cast<double>(x[c * stride]) - most);
    for (index_t c = 0; c < channels; ++c) {
        const double shifted = static_cast<double>(x[c * stride]) - most;
        x[c * stride] = static_cast<float>(head == Head::softmax ? std::exp(shifted) / sum : shifted - std::log(sum));
    }
}

float element(const Array4& a, index_t offset) {
    switch (a.type) {
        case DType::bf16:
            return from_bf16(static_cast<const unsigned short*>(a.data)[offset]);
        case DType::fp16:
            return from_fp16(static_cast<const unsigned short*>(a.data)[offset]);
        default:
            return static_cast<const float*>(a.data)[offset];
    }
}

void put(const StoredTensor& to, index_t offset, float value) {
    void* const data = const_cast<void*>(to.data);
    switch (to.type) {
        case StoredType::bf16:
            static_cast<unsigned short*>(data)[offset] = to_bf16(value);
            return;
        case StoredType::fp16:
            static_cast<unsigned short*>(data)[offset] = to_fp16(value);
            return;
        case StoredType::s64:
            static_cast<std::int64_t*>(data)[offset] = static_cast<std::int64_t>(value);
            return;
        default:
            static_cast<float*>(data)[offset] = value;
    }
}

}  // namespace

Head parse_head(const std::string& name) {
    const auto found = std::find(kHeads.begin(), kHeads.end(), name);
    if (found == kHeads.end())
        throw std::invalid_argument("functions: got '" + name +
                                    "', want 'softmax', 'log_softmax', 'sigmoid', 'argmax'");
    return static_cast<Head>(found - kHeads.begin());
}

void apply_heads(const std::vector<Head>& heads, float* data, const std::array<index_t, 4>& shape) {
    const index_t pixels = shape[2] * shape[3];
    for (const Head head : heads)
        for (index_t n = 0; n < shape[0]; ++n)
            for (index_t p = 0; p < pixels; ++p) apply(head, data + n * shape[1] * pixels + p, shape[1], pixels);
}

void copy_converted(const Array4& from, const StoredTensor& to) {
    const auto [batch, channels, height, width] = from.shape;
    for (index_t n = 0; n < batch; ++n)
        for (index_t c = 0; c < channels; ++c)
            for (index_t y = 0; y < height; ++y)
                for (index_t x = 0; x < width; ++x) {
                    const auto& f = from.strides;
                    const auto& t = to.strides;
                    put(to, n * t[0] + c * t[1] + y * t[2] + x * t[3],
                        element(from, n * f[0] + c * f[1] + y * f[2] + x * f[3]));
                }
}

}  // namespace resfuse
