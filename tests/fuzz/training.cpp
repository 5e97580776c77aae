// Fuzz target: bytes become the sizes of one of training's kernels and its operands; what comes out must be what the
// definition gives in fp64. Gradients of convolutions, batch normalisation, max and global average pooling.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "bytes.h"
#include "conv/gradients/input_gradient.h"
#include "conv/gradients/weight_gradient.h"
#include "elements.h"
#include "machine/dispatch.h"
#include "norm/batch_norm.h"
#include "pool/global_avg_pool.h"
#include "pool/max_pool_training.h"

namespace {

using namespace resfuse;
using fuzz::Bytes;
using fuzz::Elements;
using fuzz::Noise;

// Feature maps, dense NHWC, and their values as they were rounded.
struct Maps {
    Maps(index_t n, Extent size, index_t c, DType t, Noise* noise = nullptr)
        : batch(n), extent(size), channels(c), type(t), memory(count(), t), values(count()) {
        for (std::size_t i = 0; noise && i < count(); ++i) {
            memory.set(i, static_cast<double>(noise->next()));
            values[i] = memory.get(i);
        }
    }
    std::size_t count() const { return static_cast<std::size_t>(batch * extent.h * extent.w * channels); }
    std::size_t index(index_t n, index_t y, index_t x, index_t c) const {
        return static_cast<std::size_t>(((n * extent.h + y) * extent.w + x) * channels + c);
    }
    double at(index_t n, index_t y, index_t x, index_t c) const { return values[index(n, y, x, c)]; }
    Pixels pixels() const { return {batch * extent.h * extent.w, channels, type}; }
    Tensor tensor() {
        const index_t row = extent.w * channels;
        return {memory.data(), extent.h * row, row, channels, 1, type};
    }

    index_t batch;
    Extent extent;
    index_t channels;
    DType type;
    Elements memory;
    std::vector<double> values;
};

// A sum and that of its terms' magnitudes, which bounds what it may be off by.
struct Sum {
    double value = 0.0, magnitude = 0.0;
    void add(double term) {
        value += term;
        magnitude += std::fabs(term);
    }
};

double roundoff(DType type) { return type == DType::fp32 ? 0x1p-24 : type == DType::bf16 ? 0x1p-8 : 0x1p-11; }

// `share` of the terms' magnitude may be lost; then the result is rounded.
void check(const char* what, Isa isa, std::size_t i, double got, const Sum& want, DType type, double share) {
    const double allowed = share * want.magnitude + roundoff(type) * std::fabs(want.value) + 0x1p-24;
    if (std::fabs(got - want.value) <= allowed) return;
    std::fprintf(stderr, "%s at %s: element %zu is %.9g, want %.9g within %.3g\n", what, isa_name(isa), i, got,
                 want.value, allowed);
    std::abort();
}

constexpr double kDirectShare = 1e-6, kWinogradShare = 1e-4;

struct Case {
    Isa isa;
    DType type;
    int threads;
    Bytes& bytes;
    Noise noise;
    const KernelTable& kernels() const { return kernels_of(isa); }
    Maps maps(index_t batch, Extent extent, index_t channels) { return {batch, extent, channels, type, &noise}; }
    Maps empty(index_t batch, Extent extent, index_t channels) const { return {batch, extent, channels, type}; }
};

// Calls f(y, x, r, s) for taps inside the image.
template <class F>
void for_each_tap(const Window& w, Extent in, Extent out, F f) {
    for (index_t oy = 0; oy < out.h; ++oy)
        for (index_t ox = 0; ox < out.w; ++ox)
            for (index_t r = 0; r < w.kernel_h; ++r)
                for (index_t s = 0; s < w.kernel_w; ++s) {
                    const index_t y = oy * w.stride_h - w.pad_top + r * w.dilation_h;
                    const index_t x = ox * w.stride_w - w.pad_left + s * w.dilation_w;
                    if (y >= 0 && y < in.h && x >= 0 && x < in.w) f(oy, ox, y, x, r, s);
                }
}

void convolution(Case& c) {
    Bytes& b = c.bytes;
    Layer layer{.kind = LayerKind::conv, .name = "layer", .input = 0, .output = 1, .window = {}};
    Window& w = layer.window;
    const bool winograd = b.flag();
    w.kernel_h = w.kernel_w = winograd ? 3 : b.between(1, 4);
    w.stride_h = w.stride_w = winograd ? 1 : b.between(1, 3);
    w.pad_top = w.pad_left = w.pad_bottom = w.pad_right = b.between(0, w.kernel_h / 2);
    layer.in_channels = b.between(1, 40);
    layer.out_channels = b.between(1, 40);
    const Extent in{b.between(w.kernel_h, 12), b.between(w.kernel_w, 12)};
    const Extent out = window_extent(w, in, "layer");
    const index_t batch = b.between(1, 3);
    Maps x = c.maps(batch, in, layer.in_channels), grad = c.maps(batch, out, layer.out_channels);
    const index_t taps = w.kernel_h * w.kernel_w, each = layer.in_channels * taps;
    std::vector<float> dw(static_cast<std::size_t>(layer.out_channels * each), NAN);
    const std::array<index_t, 4> strides = {each, taps, w.kernel_w, 1};
    const auto weight_at = [&](index_t k, index_t ch, index_t r, index_t s) {
        return static_cast<std::size_t>(k * each + ch * taps + r * w.kernel_w + s);
    };
    weight_gradient(c.kernels(), {layer, in, out, batch, x.tensor(), grad.tensor(), dw.data(), strides}, c.threads);
    std::vector<Sum> want(dw.size());
    for (index_t n = 0; n < batch; ++n)
        for_each_tap(w, in, out, [&](index_t oy, index_t ox, index_t iy, index_t ix, index_t r, index_t s) {
            for (index_t k = 0; k < layer.out_channels; ++k)
                for (index_t ch = 0; ch < layer.in_channels; ++ch)
                    want[weight_at(k, ch, r, s)].add(x.at(n, iy, ix, ch) * grad.at(n, oy, ox, k));
        });
    const double share = w.kernel_h == 3 && w.stride_h == 1 ? kWinogradShare : kDirectShare;
    for (std::size_t i = 0; i < dw.size(); ++i)
        check("weight gradient", c.isa, i, static_cast<double>(dw[i]), want[i], DType::fp32, share);
    if (w.stride_h == 1) return;  // a Program computes it

    const std::vector<float> weight = c.noise.take(layer.out_channels * each);
    Maps dx = c.empty(batch, in, layer.in_channels);
    input_gradient(c.kernels(),
                   {layer, in, out, batch, weight.data(), strides, grad.tensor(), dx.tensor(), /*accumulate=*/false},
                   c.threads);
    std::vector<Sum> wanted(dx.count());
    for (index_t n = 0; n < batch; ++n)
        for_each_tap(w, in, out, [&](index_t oy, index_t ox, index_t iy, index_t ix, index_t r, index_t s) {
            for (index_t k = 0; k < layer.out_channels; ++k)
                for (index_t ch = 0; ch < layer.in_channels; ++ch)
                    wanted[dx.index(n, iy, ix, ch)].add(grad.at(n, oy, ox, k) *
                                                        static_cast<double>(weight[weight_at(k, ch, r, s)]));
        });
    for (std::size_t i = 0; i < wanted.size(); ++i)
        check("input gradient", c.isa, i, dx.memory.get(i), wanted[i], c.type, kWinogradShare);
}

void batch_norm(Case& c) {
    const Extent extent{c.bytes.between(1, 9), c.bytes.between(1, 9)};
    const index_t channels = c.bytes.between(1, 50), batch = c.bytes.between(1, 4);
    Maps x = c.maps(batch, extent, channels), grad = c.maps(batch, extent, channels),
         y = c.empty(batch, extent, channels);
    const std::size_t width = static_cast<std::size_t>(channels), rows = x.count() / width;
    std::vector<float> mean(width), variance(width), inverse(width), dweight(width), dbias(width);
    const std::vector<float> weight = c.noise.take(channels), bias = c.noise.take(channels);
    norm_statistics(c.kernels(), x.memory.data(), x.pixels(), mean.data(), variance.data(), c.threads);
    std::vector<Sum> sums(width), squares(width);
    for (std::size_t i = 0; i < x.count(); ++i) sums[i % width].add(x.values[i] / static_cast<double>(rows));
    for (std::size_t i = 0; i < x.count(); ++i)
        squares[i % width].add(std::pow(x.values[i] - sums[i % width].value, 2) / static_cast<double>(rows));
    std::vector<float> scale(width);
    for (std::size_t k = 0; k < width; ++k) {
        check("mean", c.isa, k, static_cast<double>(mean[k]), sums[k], DType::fp32, kDirectShare);
        check("variance", c.isa, k, static_cast<double>(variance[k]), squares[k], DType::fp32, 16 * kDirectShare);
        inverse[k] = 1.0f / std::sqrt(variance[k] + 0.1f);
        scale[k] = inverse[k] * weight[k];
    }
    const bool relu = c.bytes.flag();
    norm_forward(c.kernels(), x.memory.data(), nullptr, x.pixels(), mean.data(), scale.data(), bias.data(), relu,
                 y.memory.data(), c.threads);
    std::vector<Sum> sum_grad(width), sum_product(width);
    std::vector<double> masked(x.count());
    for (std::size_t i = 0; i < x.count(); ++i) {
        const std::size_t k = i % width;
        Sum want;
        want.add((x.values[i] - static_cast<double>(mean[k])) * static_cast<double>(scale[k]));
        want.add(static_cast<double>(bias[k]));
        if (relu && want.value < 0.0) want.value = 0.0;
        check("batch norm", c.isa, i, y.memory.get(i), want, c.type, kDirectShare);
        masked[i] = relu && y.memory.get(i) <= 0.0 ? 0.0 : grad.values[i];
        sum_grad[k].add(masked[i]);
        sum_product[k].add(masked[i] * (x.values[i] - static_cast<double>(mean[k])) * static_cast<double>(inverse[k]));
    }
    Maps dx = c.empty(batch, extent, channels);
    norm_backward(c.kernels(),
                  {.grad = grad.memory.data(),
                   .y = relu ? y.memory.data() : nullptr,
                   .scale = nullptr,
                   .bias = nullptr,
                   .x = x.memory.data(),
                   .mean = mean.data(),
                   .inverse_deviation = inverse.data(),
                   .weight = weight.data(),
                   .batch_statistics = true,
                   .dx = dx.memory.data(),
                   .dresidual = nullptr,
                   .dweight = dweight.data(),
                   .dbias = dbias.data()},
                  x.pixels(), c.threads);
    for (std::size_t k = 0; k < width; ++k) {
        check("bias gradient", c.isa, k, static_cast<double>(dbias[k]), sum_grad[k], DType::fp32, kDirectShare);
        check("weight gradient of a norm", c.isa, k, static_cast<double>(dweight[k]), sum_product[k], DType::fp32,
              kDirectShare);
    }
    for (std::size_t i = 0; i < x.count(); ++i) {
        const std::size_t k = i % width;
        const double normed = (x.values[i] - static_cast<double>(mean[k])) * static_cast<double>(inverse[k]);
        const double factor = static_cast<double>(scale[k]), n = static_cast<double>(rows);
        Sum want;
        want.add(factor * masked[i]);
        want.add(-factor * sum_grad[k].value / n);
        want.add(-factor * normed * sum_product[k].value / n);
        check("input gradient of a norm", c.isa, i, dx.memory.get(i), want, c.type, 4 * kDirectShare);
    }
}

void max_pool(Case& c) {
    Bytes& b = c.bytes;
    PoolShape shape{.window = {.kernel_h = b.between(1, 4),
                               .kernel_w = b.between(1, 4),
                               .stride_h = b.between(1, 3),
                               .stride_w = b.between(1, 3)},
                    .batch = b.between(1, 3),
                    .channels = b.between(1, 50),
                    .type = c.type};
    Window& w = shape.window;
    w.pad_top = w.pad_bottom = b.between(0, w.kernel_h / 2);
    w.pad_left = w.pad_right = b.between(0, w.kernel_w / 2);
    shape.in = {b.between(w.kernel_h, 12), b.between(w.kernel_w, 12)};
    shape.out = window_extent(w, shape.in, "pool");
    Maps x = c.maps(shape.batch, shape.in, shape.channels), y = c.empty(shape.batch, shape.out, shape.channels);
    Maps grad = c.maps(shape.batch, shape.out, shape.channels), dx = c.empty(shape.batch, shape.in, shape.channels);
    std::vector<std::uint8_t> taps(y.count());
    max_pool_forward(c.kernels(), shape, x.memory.data(), y.memory.data(), taps.data(), c.threads);
    max_pool_backward(c.kernels(), shape, grad.memory.data(), taps.data(), dx.memory.data(), c.threads);
    std::vector<double> largest(y.count(), -HUGE_VAL);
    std::vector<std::size_t> from(y.count());
    std::vector<Sum> want(dx.count());
    for (index_t n = 0; n < shape.batch; ++n)
        for_each_tap(w, shape.in, shape.out, [&](index_t oy, index_t ox, index_t iy, index_t ix, index_t, index_t) {
            for (index_t ch = 0; ch < shape.channels; ++ch) {
                const std::size_t to = y.index(n, oy, ox, ch);
                if (x.at(n, iy, ix, ch) <= largest[to]) continue;  // the first of equal ones
                largest[to] = x.at(n, iy, ix, ch);
                from[to] = x.index(n, iy, ix, ch);
            }
        });
    for (std::size_t i = 0; i < y.count(); ++i) {
        check("max pool", c.isa, i, y.memory.get(i), {largest[i], 0.0}, c.type, 0.0);
        want[from[i]].add(grad.values[i]);
    }
    for (std::size_t i = 0; i < want.size(); ++i)
        check("max pool's gradient", c.isa, i, dx.memory.get(i), want[i], c.type, kDirectShare);
}

void global_pool(Case& c) {
    const Extent extent{c.bytes.between(1, 12), c.bytes.between(1, 12)};
    const index_t batch = c.bytes.between(1, 3), channels = c.bytes.between(1, 70), pixels = extent.h * extent.w;
    Maps x = c.maps(batch, extent, channels), dx = c.empty(batch, extent, channels);
    Maps y = c.empty(batch, {1, 1}, channels), grad = c.maps(batch, {1, 1}, channels);
    const bool planes = c.bytes.flag();  // the same memory as [C, H, W] or as [H, W, C]
    const std::array<index_t, 4> strides =
        planes ? std::array<index_t, 4>{channels * pixels, pixels, extent.w, 1}
               : std::array<index_t, 4>{channels * pixels, 1, extent.w * channels, channels};
    const StridedImages images{c.type, {batch, channels, extent.h, extent.w}, strides};
    global_avg_pool(c.kernels(), x.memory.data(), images, y.memory.data(), c.threads);
    global_avg_pool_backward(c.kernels(), grad.memory.data(), {channels, 1}, dx.memory.data(), images, c.threads);
    for (index_t n = 0; n < batch; ++n)
        for (index_t ch = 0; ch < channels; ++ch) {
            const std::size_t mean_at = static_cast<std::size_t>(n * channels + ch);
            Sum mean, spread;
            spread.add(grad.values[mean_at] / static_cast<double>(pixels));
            for (index_t p = 0; p < pixels; ++p) {
                const index_t offset =
                    n * strides[0] + ch * strides[1] + p / extent.w * strides[2] + p % extent.w * strides[3];
                const auto i = static_cast<std::size_t>(offset);
                mean.add(x.values[i] / static_cast<double>(pixels));
                check("global average pool's gradient", c.isa, i, dx.memory.get(i), spread, c.type, kDirectShare);
            }
            check("global average pool", c.isa, mean_at, y.memory.get(mean_at), mean, c.type, kDirectShare);
        }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Bytes bytes(data, size);
    const std::vector<std::string> levels = available_isas();
    constexpr std::array<DType, 3> kTypes = {DType::fp32, DType::bf16, DType::fp16};
    Case c{.isa = parse_isa(levels[bytes.byte() % levels.size()]),
           .type = kTypes[bytes.byte() % kTypes.size()],
           .threads = static_cast<int>(bytes.between(1, 3)),
           .bytes = bytes,
           .noise = Noise(bytes.byte() * 256u + bytes.byte())};
    const std::uint8_t kind = bytes.byte() % 5;
    if (kind < 2) {
        convolution(c);
    } else if (kind == 2) {
        batch_norm(c);
    } else if (kind == 3) {
        max_pool(c);
    } else {
        global_pool(c);
    }
    return 0;
}
