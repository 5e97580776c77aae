#include "reference.h"

#include <algorithm>
#include <cmath>

namespace fuzz {

using namespace resfuse;

namespace {

double activated(const Layer& layer, const LayerWeights& weights, index_t channel, double x) {
    switch (layer.activation) {
        case Activation::relu:
            return x < 0 ? 0 : x;
        case Activation::tanh:
            return std::tanh(x);
        case Activation::sigmoid:
            return 1 / (1 + std::exp(-x));
        case Activation::silu:
            return x / (1 + std::exp(-x));
        case Activation::gelu:
            return x * 0.5 * std::erfc(-x * M_SQRT1_2);
        case Activation::leaky_relu:
            return x > 0 ? x : x * static_cast<double>(layer.slope);
        case Activation::relu6:
            return std::clamp(x, 0.0, 6.0);
        case Activation::hardsigmoid:
            return std::clamp(x + 3, 0.0, 6.0) / 6;
        case Activation::hardswish:
            return x * std::clamp(x + 3, 0.0, 6.0) / 6;
        case Activation::mish:
            return x * std::tanh(std::log1p(std::exp(x)));
        case Activation::elu:
            return x > 0 ? x : static_cast<double>(layer.slope) * std::expm1(x);
        case Activation::prelu:
            return x > 0 ? x : x * weights.slopes[static_cast<std::size_t>(channel)];
        case Activation::clamp:
        case Activation::hardtanh:
            return std::min(std::max(x, static_cast<double>(layer.slope)), static_cast<double>(layer.upper));
        case Activation::none:
        case Activation::softmax:
            return x;
    }
    return x;
}

void softmax(double* x, index_t n) {
    const double largest = *std::max_element(x, x + n);
    double sum = 0;
    for (index_t i = 0; i < n; ++i) sum += x[i] = std::exp(x[i] - largest);
    for (index_t i = 0; i < n; ++i) x[i] /= sum;
}

// Calls f(y, x, r, s) for the taps of a window that lie in the image.
template <class F>
void for_taps(const Window& w, const Images& in, index_t oy, index_t ox, F f) {
    for (index_t r = 0; r < w.kernel_h; ++r)
        for (index_t s = 0; s < w.kernel_w; ++s) {
            const index_t y = oy * w.stride_h - w.pad_top + r * w.dilation_h;
            const index_t x = ox * w.stride_w - w.pad_left + s * w.dilation_w;
            if (y >= 0 && y < in.height && x >= 0 && x < in.width) f(y, x, r, s);
        }
}

double convolved(const Layer& layer, const LayerWeights& weights, Images& in, index_t n, index_t oy, index_t ox,
                 index_t k) {
    const Window& w = layer.window;
    const index_t depth = layer.in_channels / layer.groups;
    const index_t first = k / (layer.out_channels / layer.groups) * depth;
    double sum = 0;
    for_taps(w, in, oy, ox, [&](index_t y, index_t x, index_t r, index_t s) {
        for (index_t c = 0; c < depth; ++c) {
            const index_t i = ((k * depth + c) * w.kernel_h + r) * w.kernel_w + s;
            sum += static_cast<double>(weights.weight[static_cast<std::size_t>(i)]) * in.at(n, y, x, first + c);
        }
    });
    return sum;
}

double pooled(const Layer& layer, Images& in, index_t n, index_t oy, index_t ox, index_t c) {
    const Window& w = layer.window;
    const bool largest = layer.kind == LayerKind::max_pool;
    double sum = 0, most = -HUGE_VAL;
    index_t inside = 0;
    for_taps(w, in, oy, ox, [&](index_t y, index_t x, index_t, index_t) {
        sum += in.at(n, y, x, c);
        most = std::max(most, in.at(n, y, x, c));
        ++inside;
    });
    if (largest) return most;
    if (!layer.counts_padding) return sum / static_cast<double>(inside);
    const index_t y = oy * w.stride_h - w.pad_top, x = ox * w.stride_w - w.pad_left;
    const index_t rows = std::min(y + w.kernel_h, in.height + w.pad_bottom) - y;
    const index_t cols = std::min(x + w.kernel_w, in.width + w.pad_right) - x;
    return sum / static_cast<double>(rows * cols);
}

double averaged(Images& in, index_t n, index_t c) {
    double sum = 0;
    for (index_t y = 0; y < in.height; ++y)
        for (index_t x = 0; x < in.width; ++x) sum += in.at(n, y, x, c);
    return sum / static_cast<double>(in.height * in.width);
}

// The element of the input that a layer moves to an output, or zero.
double moved(const Layer& layer, Images& in, index_t n, index_t y, index_t x, index_t c) {
    if (layer.kind == LayerKind::slice) return in.at(n, y, x, layer.first_channel + c);
    y -= layer.window.pad_top;
    x -= layer.window.pad_left;
    return y >= 0 && y < in.height && x >= 0 && x < in.width ? in.at(n, y, x, c) : 0.0;
}

double unfolded(const Layer& layer, Images& in, index_t n, index_t y, index_t x, index_t c) {
    const DepthToSpace& b = layer.blocks;
    y += b.crop_top;
    x += b.crop_left;
    const index_t phase = y % b.block_h * b.block_w + x % b.block_w;
    return in.at(n, y / b.block_h, x / b.block_w, phase * layer.out_channels + c);
}

double shuffled(const Layer& layer, Images& in, index_t n, index_t y, index_t x, index_t c) {
    return in.at(n, y, x, c % layer.groups * (layer.in_channels / layer.groups) + c / layer.groups);
}

double joined(const Layer& layer, std::vector<Images>& buffers, index_t n, index_t y, index_t x, index_t c) {
    for (const int part : layer.parts) {
        Images& images = buffers[static_cast<std::size_t>(part)];
        if (c < images.channels) return images.at(n, y, x, c);
        c -= images.channels;
    }
    return 0.0;
}

// Where output `i` lies between pixels of the input: as torch has it, in fp32.
float place(const Resize& resize, index_t i, index_t in, index_t out, double scale) {
    const auto lengths = [](index_t a, index_t b) { return static_cast<float>(a) / static_cast<float>(b); };
    if (resize.bilinear && resize.align_corners) return out > 1 ? lengths(in - 1, out - 1) * static_cast<float>(i) : 0;
    const float step = scale > 0 ? static_cast<float>(1 / scale) : lengths(in, out);
    const auto at = static_cast<float>(i);
    return resize.bilinear ? std::max(step * (at + 0.5f) - 0.5f, 0.0f) : std::floor(at * step);
}

double resized(const Layer& layer, Images& in, Extent out, index_t n, index_t y, index_t x, index_t c) {
    const Resize& r = layer.resize;
    const double row = static_cast<double>(place(r, y, in.height, out.h, r.scale_h)),
                 col = static_cast<double>(place(r, x, in.width, out.w, r.scale_w));
    double sum = 0;
    for (const index_t i : {index_t{0}, index_t{1}})
        for (const index_t j : {index_t{0}, index_t{1}}) {
            const double top = std::floor(row), left = std::floor(col);
            const double weight = (i ? row - top : 1 - row + top) * (j ? col - left : 1 - col + left);
            if (weight == 0) continue;
            sum += weight * in.at(n, std::min(static_cast<index_t>(top) + i, in.height - 1),
                                  std::min(static_cast<index_t>(left) + j, in.width - 1), c);
        }
    return sum;
}

double normalised(const Layer& layer, Images& in, index_t n, index_t y, index_t x, index_t c) {
    const bool by_pixel = layer.kind == LayerKind::layer_norm;
    const index_t each = by_pixel ? in.channels : in.channels / layer.groups, first = c / each * each;
    const Extent from{by_pixel ? y : 0, by_pixel ? x : 0},
        to{by_pixel ? y + 1 : in.height, by_pixel ? x + 1 : in.width};
    double sum = 0, squares = 0, count = 0;
    for (int pass = 0; pass < 2; ++pass)
        for (index_t i = from.h; i < to.h; ++i)
            for (index_t j = from.w; j < to.w; ++j)
                for (index_t k = first; k < first + each; ++k) {
                    if (pass == 0) {
                        sum += in.at(n, i, j, k);
                        ++count;
                    } else {
                        squares += std::pow(in.at(n, i, j, k) - sum / count, 2);
                    }
                }
    return (in.at(n, y, x, c) - sum / count) / std::sqrt(squares / count + static_cast<double>(layer.eps));
}

// What a layer computes of its inputs, before a scale, a bias, a residual and an activation.
double computed(const Layer& layer, const LayerWeights& weights, std::vector<Images>& buffers, Extent out, index_t n,
                index_t y, index_t x, index_t c) {
    Images& in = buffers[static_cast<std::size_t>(layer.input)];
    switch (layer.kind) {
        case LayerKind::conv:
            return convolved(layer, weights, in, n, y, x, c);
        case LayerKind::affine:
            return in.at(n, y, x, c);
        case LayerKind::global_avg_pool:
            return averaged(in, n, c);
        case LayerKind::max_pool:
        case LayerKind::avg_pool:
            return pooled(layer, in, n, y, x, c);
        case LayerKind::concat:
            return joined(layer, buffers, n, y, x, c);
        case LayerKind::slice:
        case LayerKind::pad:
            return moved(layer, in, n, y, x, c);
        case LayerKind::depth_to_space:
            return unfolded(layer, in, n, y, x, c);
        case LayerKind::channel_shuffle:
            return shuffled(layer, in, n, y, x, c);
        case LayerKind::resize:
            return resized(layer, in, out, n, y, x, c);
        case LayerKind::group_norm:
        case LayerKind::layer_norm:
            return normalised(layer, in, n, y, x, c);
    }
    return 0.0;
}

}  // namespace

void evaluate(const Plan& plan, const std::vector<LayerWeights>& weights, std::vector<Images>& buffers) {
    for (std::size_t l = 0; l < plan.layers().size(); ++l) {
        const Layer& layer = plan.layers()[l];
        const auto buffer = [&](int b) -> Images& { return buffers[static_cast<std::size_t>(b)]; };
        Images& out = buffer(layer.output);
        const Extent extent = plan.extent(layer.output);
        out = {plan.batch(), extent.h, extent.w, layer.out_channels, {}};
        out.values.resize(static_cast<std::size_t>(out.batch * out.height * out.width * out.channels));
        const auto scale = [&](index_t k) {
            return weights[l].scale.empty() ? 1.0 : weights[l].scale[static_cast<std::size_t>(k)];
        };
        const auto bias = [&](index_t k) {
            return weights[l].bias.empty() ? 0.0 : static_cast<double>(weights[l].bias[static_cast<std::size_t>(k)]);
        };
        for (index_t n = 0; n < out.batch; ++n)
            for (index_t y = 0; y < out.height; ++y)
                for (index_t x = 0; x < out.width; ++x) {
                    for (index_t k = 0; k < out.channels; ++k) {
                        double& to = out.at(n, y, x, k);
                        const double factor = layer.gate >= 0 ? buffer(layer.gate).at(n, 0, 0, k) : scale(k);
                        to = factor * computed(layer, weights[l], buffers, extent, n, y, x, k) + bias(k);
                        if (layer.product >= 0) to *= buffer(layer.product).at(n, y, x, k);
                        if (layer.residual >= 0) to += buffer(layer.residual).at(n, y, x, k);
                        to = activated(layer, weights[l], k, to);
                    }
                    if (layer.activation == Activation::softmax) softmax(&out.at(n, y, x, 0), out.channels);
                }
    }
}

}  // namespace fuzz
