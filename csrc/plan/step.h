// A Step computes one layer for one wave of images. It is cut into stages (a barrier between them) and each stage into
// tasks that any thread may take in any order.
#pragma once

#include <memory>
#include <vector>

#include "plan/buffer.h"
#include "program/requantize.h"

namespace resfuse {

inline void* element_at(void* data, index_t i, DType type) {
    return static_cast<std::byte*>(data) + i * kElementBytes[static_cast<std::size_t>(type)];
}
inline const void* element_at(const void* data, index_t i, DType type) {
    return static_cast<const std::byte*>(data) + i * kElementBytes[static_cast<std::size_t>(type)];
}

// Where a buffer lies while a wave runs: image i of the wave starts i * image elements from data.
struct Tensor {
    std::byte* data = nullptr;
    index_t image = 0, row = 0, pixel = 0, channel = 0;  // elements
    DType type = DType::fp32;

    void* at(index_t i) const { return element_at(data, i, type); }
    float* floats() const { return reinterpret_cast<float*>(data); }  // of fp32
};

class WeightSet;

struct Wave {
    const KernelTable& kernels;
    const WeightSet& weights;
    index_t images;
    const Tensor* tensors;  // one per buffer
    void* shared;           // scratch that all threads of a step see
    const float* zeros;     // as many zeros as the widest buffer has channels

    // That read or write a buffer.
    const ElementKernels& kernels_of(int buffer) const { return resfuse::kernels_of(kernels, tensors[buffer].type); }
    const ElementKernels& fp32() const { return resfuse::kernels_of(kernels, DType::fp32); }
};

// What a step needs to know of the plan it is made for.
struct StepContext {
    const Program& program;
    const std::vector<Layer>& layers;  // paddings resolved
    const std::vector<PlannedBuffer>& buffers;
    // Per layer: the pooling layer that alone reads its output, or null.
    const std::vector<const Layer*>& pooled;
    index_t images;  // per wave, at most
    int threads;
    // The global average pool that alone reads a layer's output, or null.
    const Layer* averaged(std::size_t layer) const {
        return pooled[layer] && pooled[layer]->kind == LayerKind::global_avg_pool ? pooled[layer] : nullptr;
    }
    const PlannedBuffer& buffer(int number) const { return buffers[static_cast<std::size_t>(number)]; }
    const KernelTable& kernels() const { return program.kernels(); }
};

class Step {
  public:
    virtual ~Step() = default;
    virtual int stages() const { return 1; }
    virtual index_t tasks(int stage, index_t images) const = 0;
    virtual void run(int stage, index_t task, const Wave& wave, void* scratch) const = 0;
    // Whether this step writes what the pooling layer behind it makes of its output and not the output.
    virtual bool pools() const { return false; }
    // The global average pool behind it that this step computes beside its output, or null.
    virtual const Layer* gathers() const { return nullptr; }

    std::size_t thread_scratch = 0;  // bytes
    std::size_t shared_scratch = 0;  // bytes
};

// Of layers that are no convolutions; the rooms of these layers define them.
std::unique_ptr<Step> make_affine_step(const StepContext& context, std::size_t layer);
std::unique_ptr<Step> make_group_norm_step(const StepContext& context, std::size_t layer);
std::unique_ptr<Step> make_layer_norm_step(const StepContext& context, std::size_t layer);
std::unique_ptr<Step> make_pool_step(const StepContext& context, std::size_t layer);
std::unique_ptr<Step> make_global_avg_pool_step(const StepContext& context, std::size_t layer);
std::unique_ptr<Step> make_move_step(const StepContext& context, std::size_t layer);
std::unique_ptr<Step> make_resize_step(const StepContext& context, std::size_t layer);
std::unique_ptr<Step> make_depth_to_space_step(const StepContext& context, std::size_t layer);
std::unique_ptr<Step> make_channel_shuffle_step(const StepContext& context, std::size_t layer);
// Does nothing, for a layer that the step before it computes as well.
std::unique_ptr<Step> make_fused_away_step();
// Does what another step does, then copies a buffer that this step writes, in NHWC, to one in contiguous NCHW memory:
// while it is in cache.
std::unique_ptr<Step> make_planes_step(const StepContext& context, std::unique_ptr<Step> step, int from, int to);
// Copies a strided buffer into a dense NHWC one.
std::unique_ptr<Step> make_layout_step(const StepContext& context, int from, int to);

inline std::size_t float_bytes(index_t floats) { return static_cast<std::size_t>(floats) * sizeof(float); }

inline index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }

// The rows of a product are some floats apart. Where that is a multiple of half a page or more they fall into one or
// two sets of L1, which hold fewer than a register tile has. Every second row may be taken (stride 2, Strassen's
// pairs), so rows a quarter of a page apart get one more cache line.
inline index_t padded_pixel(index_t elements, DType type = DType::fp32) {
    constexpr index_t kQuarterPageFloats = 256;
    const index_t each = type == DType::u8 ? 4 : 1;  // elements in a float's place
    return elements % (kQuarterPageFloats * each) == 0 ? elements + kLineFloats * each : elements;
}

// Part i of n of [0, total), as even as possible.
struct Range {
    index_t begin, end;
    index_t size() const { return end - begin; }
};
inline Range part(index_t total, index_t i, index_t n) { return {total * i / n, total * (i + 1) / n}; }

inline float activation_floor(Activation activation) {
    return activation == Activation::relu ? 0.0f : -__builtin_inff();
}

// A layer's activation, unless a clamp is all of it; `slopes` are prelu's, of some channels.
inline ActivationArgs activation_by_element(const Layer& layer, const float* slopes) {
    if (!is_by_element(layer.activation)) return {Activation::none, 0.0f};
    return {layer.activation, layer.slope, slopes, layer.upper};
}
// Whether products of bytes, or Winograd's transforms, leave the activation to a pass of its own.
inline bool activates_apart(const Layer& layer) {
    return layer.type == DType::fp32 && is_by_element(layer.activation) && !(layer.is_int8() && activates_sums(layer));
}

// Rows of an image from one on: null where a layer has no such operand.
struct Operand {
    void* data;
    index_t pixel;
};
inline Operand operand(const Wave& wave, int buffer, index_t image, index_t row) {
    if (buffer < 0) return {nullptr, 0};
    const Tensor& tensor = wave.tensors[buffer];
    return {tensor.at(image * tensor.image + row * tensor.row), tensor.pixel};
}

// A window of pixels; it may reach past the image.
struct PixelWindow {
    index_t y0, rows, x0, cols;
};

// Some channels of a window of one image, of any strides, as a copy to a band whose pixels are `pixel` elements apart.
inline BandArgs window_copy(const Tensor& x, index_t image, Extent extent, Range channels, const PixelWindow& window,
                            void* band, index_t pixel) {
    return {.image = x.at(image * x.image + channels.begin * x.channel),
            .height = extent.h,
            .width = extent.w,
            .channels = channels.size(),
            .stride_h = x.row,
            .stride_w = x.pixel,
            .stride_c = x.channel,
            .y0 = window.y0,
            .rows = window.rows,
            .x0 = window.x0,
            .cols = window.cols,
            .band = band,
            .pixel = pixel};
}

// The same as fp32, with zeros where there is no image.
inline void copy_window(const Wave& wave, int buffer, index_t image, Extent extent, Range channels,
                        const PixelWindow& window, float* band, index_t pixel) {
    wave.kernels_of(buffer).copy_band(window_copy(wave.tensors[buffer], image, extent, channels, window, band, pixel));
}

// Some pixels of a dense buffer, counted over all images.
inline BandArgs pixels_copy(const Tensor& x, Range pixels, index_t channels, void* to, index_t pitch) {
    Tensor row = x;
    row.data = static_cast<std::byte*>(row.at(pixels.begin * row.pixel));
    return window_copy(row, 0, {1, pixels.size()}, {0, channels}, {.y0 = 0, .rows = 1, .x0 = 0, .cols = pixels.size()},
                       to, pitch);
}

// The same as fp32.
inline void copy_pixels(const Wave& wave, int buffer, Range pixels, index_t channels, float* to, index_t pitch) {
    wave.kernels_of(buffer).copy_band(pixels_copy(wave.tensors[buffer], pixels, channels, to, pitch));
}

// Calls f(image, window) for some output pixels of a layer, counted over all images.
template <class F>
inline void for_each_window(const Layer& layer, Extent out, Range rows, F f) {
    const Window& w = layer.window;
    for (index_t row = rows.begin; row < rows.end; ++row) {
        const index_t pixel = row % (out.h * out.w);
        f(row / (out.h * out.w), PixelWindow{.y0 = pixel / out.w * w.stride_h - w.pad_top,
                                             .rows = w.kernel_h,
                                             .x0 = pixel % out.w * w.stride_w - w.pad_left,
                                             .cols = w.kernel_w});
    }
}

// These windows as rows `pitch` floats apart.
inline void gather_windows(const Wave& wave, const Layer& layer, Extent in, Extent out, Range rows, float* to,
                           index_t pitch) {
    for_each_window(layer, out, rows, [&](index_t image, const PixelWindow& window) {
        copy_window(wave, layer.input, image, in, {0, layer.in_channels}, window, to, layer.in_channels);
        to += pitch;
    });
}

// What a layer adds to a row of an image's outputs, from a channel on: null where it adds nothing.
struct Residual {
    const void* data;
    index_t pixel;
};
inline Residual residual_at(const Wave& wave, const Layer& layer, index_t image, index_t row, index_t channel) {
    if (layer.residual < 0) return {nullptr, 0};
    const Tensor& r = wave.tensors[layer.residual];
    return {r.at(image * r.image + row * r.row + channel), r.pixel};
}

// The same from a pixel on that is counted over all images, of a dense residual.
inline Residual residual_from(const Wave& wave, const Layer& layer, index_t pixel, index_t channel) {
    if (layer.residual < 0) return {nullptr, 0};
    const Tensor& r = wave.tensors[layer.residual];
    return {r.at(pixel * r.pixel + channel), r.pixel};
}

// What pixel `i` of the output of a 1x1 convolution, counted over all images, reads.
inline const void* one_by_one_input(const Layer& layer, const Tensor& x, Extent out, index_t i) {
    if (layer.window.is_pointwise()) return x.at(i * x.pixel);
    const index_t pixels = out.h * out.w, pixel = i % pixels;
    return x.at(i / pixels * x.image + pixel / out.w * layer.window.stride_h * x.row +
                pixel % out.w * layer.window.stride_w * x.pixel);
}

inline ImageView image_view(const Tensor& tensor, index_t image, Extent extent) {
    return {tensor.at(image * tensor.image), extent.h, extent.w, tensor.row, tensor.pixel};
}

// A whole feature map of one weight panel that fits in cache is pooled there.
constexpr index_t kMostPooledFloats = 64 * 1024;

// Means over the pixels of channels [begin, end) of an image of one type into y of another; `scratch` holds as many
// floats. Where the image lies and how its channels are shared out depends on the number of threads, the bits must not.
inline void pool_pixels(const ElementKernels& reads, const ElementKernels& writes, const ImageView& image, DType type,
                        index_t begin, index_t end, float* scratch, void* y) {
    const bool one_row = image.row == image.width * image.pixel;
    reads.pool_sum({.x = element_at(image.data, begin, type),
                    .channels = end - begin,
                    .rows = one_row ? 1 : image.height,
                    .cols = one_row ? image.height * image.width : image.width,
                    .stride_c = 1,
                    .stride_h = image.row,
                    .stride_w = image.pixel,
                    .sums = scratch,
                    .by_pixel = true});
    writes.pool_mean({.sums = scratch,
                      .parts = 1,
                      .part_stride = 0,
                      .channels = end - begin,
                      .pixels = image.height * image.width,
                      .y = y,
                      .stride_y = 1});
}

}  // namespace resfuse
