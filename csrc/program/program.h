// A Program: layers over buffers, without shapes of images and without weights. Building one fixes the structure only;
// a Plan (plan.h) fixes everything for one input size, a WeightSet (weights.h) holds one version of the parameters.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "machine/dispatch.h"

namespace resfuse {

enum class LayerKind {
    conv,
    max_pool,
    avg_pool,
    global_avg_pool,
    affine,
    concat,
    slice,
    pad,
    depth_to_space,
    channel_shuffle,
    resize,
    group_norm,
    layer_norm
};

Activation parse_activation(const std::string& name);

// Whether an activation is a function of each element that no epilogue computes.
inline bool is_by_element(Activation activation) {
    return activation != Activation::none && activation != Activation::relu && activation != Activation::softmax;
}

struct Window {
    index_t kernel_h = 1, kernel_w = 1;
    index_t stride_h = 1, stride_w = 1;
    index_t dilation_h = 1, dilation_w = 1;
    index_t pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;
    bool ceil_mode = false;     // of pools
    bool same_padding = false;  // TensorFlow's "same": the pads follow from the image, the odd one goes behind

    bool is_pointwise() const {
        return kernel_h == 1 && kernel_w == 1 && stride_h == 1 && stride_w == 1 && !has_padding();
    }
    bool is_dilated() const { return dilation_h != 1 || dilation_w != 1; }
    // Of a resolved window.
    bool has_padding() const { return pad_top || pad_left || pad_bottom || pad_right; }
    // For kernels that are given an image without its first rows.
    WindowArgs args(index_t rows_left_out = 0) const {
        return {kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top + rows_left_out, pad_left};
    }
};

// Height and width of an image.
struct Extent {
    index_t h, w;
};

// How an image is resampled to another size, as torch's interpolate does it.
struct Resize {
    bool bilinear = false;       // else nearest
    bool align_corners = false;  // of bilinear
    Extent size{0, 0};           // of the output, where `scale` is zero
    double scale_h = 0.0, scale_w = 0.0;
    int like = -1;  // the buffer whose size the output has, or -1
};

// Throws std::invalid_argument for a shape of more floats than a process can address, so that no product of its
// lengths overflows.
void require_addressable(std::initializer_list<index_t> shape, const std::string& what);

// The window with the pads that "same" padding gives for an image; other windows as they are.
Window resolve_padding(Window window, Extent in);

// Throws std::invalid_argument for a pool's window that may meet padding alone, or that has no size.
void check_pool_window(const Window& window, const std::string& layer);

// Output extent of a window over an image, as torch computes it; throws std::invalid_argument when it is not positive.
Extent window_extent(const Window& window, Extent in, const std::string& layer);

// Channels that become pixels: of each block of an output's pixels one lies in each `block_h` * `block_w` th of the
// input's channels, row by row. Of the image that they make, some rows and columns at its edges are left out.
struct DepthToSpace {
    index_t block_h = 1, block_w = 1;
    index_t crop_top = 0, crop_left = 0, crop_bottom = 0, crop_right = 0;
};

struct Layer {
    LayerKind kind;
    std::string name;
    int input;
    int output;
    int residual = -1;          // buffer added before the activation, or -1
    int gate = -1;              // of an affine layer: buffer of one pixel that it multiplies by, or -1
    int product = -1;           // of an affine layer: buffer of its output's size that it multiplies by, or -1
    std::vector<int> parts;     // of a concatenation: all buffers that it joins, the input being the first
    index_t first_channel = 0;  // of a slice
    Resize resize;              // of a resize
    DepthToSpace blocks;        // of a depth_to_space
    Window window;              // of a pad layer its pads, which crop where they are negative
    index_t in_channels = 0;
    index_t out_channels = 0;
    index_t groups = 1;
    Activation activation = Activation::none;
    float slope = 0.0f;                 // of leaky_relu; elu's alpha; clamp's lower bound; prelu's are parameters
    float upper = 0.0f;                 // bound of clamp
    bool counts_padding = false;        // of an average pool: as zeros
    float eps = 0.0f;                   // of a group norm (of `groups`) or layer norm
    DType input_type = DType::fp32;     // of its input's elements
    DType type = DType::fp32;           // of its output's
    std::optional<Quantization> reads;  // of a convolution that computes with bytes: how its input becomes them
    std::string algorithm = "auto";     // of a convolution, as asked for: a name that plan/algorithm.h knows

    index_t group_in() const { return in_channels / groups; }
    index_t group_out() const { return out_channels / groups; }
    bool is_int8() const { return reads.has_value(); }
    // Whether it takes a scale and a bias by channel, and no weights.
    bool is_scaled() const {
        return kind == LayerKind::affine || kind == LayerKind::group_norm || kind == LayerKind::layer_norm;
    }
    // The buffers that it reads.
    std::vector<int> sources() const;
    // Whether the activation is a lower clamp at most.
    bool clamps() const { return activation == Activation::none || activation == Activation::relu; }
    // Whether this is a 1x1 convolution of real numbers whose epilogue does all of its activation.
    bool is_one_by_one() const {
        return kind == LayerKind::conv && !is_int8() && groups == 1 && window.kernel_h == 1 && window.kernel_w == 1 &&
               !window.has_padding() && clamps();
    }
};

class Program {
  public:
    explicit Program(Isa isa) : isa_(isa) {}

    // Each returns the number of the buffer that it makes. All throw std::invalid_argument for what cannot be.
    // `writes` is how an output becomes bytes; without it, it is of the input's type, of bytes fp32. A convolution
    // computes with bytes where its input is of them, or where layer.reads says how that becomes them. Max-pools hand
    // their input's quantisation on.
    int add_input(index_t channels, DType type = DType::fp32);
    using Writes = std::optional<Quantization>;
    int add_conv(Layer layer, const Writes& writes = {});
    int add_max_pool(const std::string& name, int input, const Window& window);
    int add_avg_pool(const std::string& name, int input, const Window& window, bool counts_padding,
                     const Writes& writes = {});
    int add_global_avg_pool(const std::string& name, int input, const Writes& writes = {});
    int add_affine(Layer layer, const Writes& writes = {});
    // Of real numbers, as all layers that only move elements are. Joins channels, or takes some of them.
    int add_concat(const std::string& name, const std::vector<int>& parts);
    int add_slice(const std::string& name, int input, index_t first_channel, index_t channels);
    // Of the image and the channels of each group, or of the channels of each pixel; both take a scale and a bias by
    // channel as an affine layer does.
    int add_group_norm(Layer layer);
    int add_layer_norm(Layer layer);
    // Zeros around an image; negative pads crop it.
    int add_pad(const std::string& name, int input, const Window& pads);
    int add_depth_to_space(const std::string& name, int input, const DepthToSpace& blocks);
    // y[c * groups + g] = x[g * channels / groups + c]
    int add_channel_shuffle(const std::string& name, int input, index_t groups);
    int add_resize(const std::string& name, int input, const Resize& resize);
    void add_output(int buffer);

    // Plans and weight sets refer to the layers, so the first of them ends the building.
    void freeze() const { frozen_ = true; }

    Isa isa() const { return isa_; }
    const KernelTable& kernels() const { return kernels_of(isa_); }
    const std::vector<Layer>& layers() const { return layers_; }
    const std::vector<int>& inputs() const { return inputs_; }
    const std::vector<int>& outputs() const { return outputs_; }
    int buffers() const { return static_cast<int>(buffers_.size()); }
    index_t channels(int buffer) const { return buffers_[static_cast<std::size_t>(buffer)].channels; }
    DType type(int buffer) const { return buffers_[static_cast<std::size_t>(buffer)].type; }
    // Of a buffer of bytes.
    const Quantization& range(int buffer) const { return *buffers_[static_cast<std::size_t>(buffer)].range; }

  private:
    void check_buffer(int buffer, const std::string& what) const;
    // Of a buffer that a layer adds or multiplies by, or -1.
    void check_operand(const Layer& layer, int buffer, const char* what) const;
    int add_buffer(index_t channels, DType type, const Writes& range = {});
    DType output_type(int input, const Writes& writes) const;
    // Makes a layer's output.
    int add_layer(Layer layer, const Writes& writes);
    // Of a layer that only moves elements.
    Layer moving(LayerKind kind, const std::string& name, int input) const;
    int add_pool(LayerKind kind, const std::string& name, int input, const Window& window, bool counts_padding,
                 const Writes& writes);

    struct Buffer {
        index_t channels;
        DType type;
        Writes range;  // of bytes
    };

    Isa isa_;
    mutable bool frozen_ = false;
    std::vector<Buffer> buffers_;
    std::vector<Layer> layers_;
    std::vector<int> inputs_;
    std::vector<int> outputs_;
};

}  // namespace resfuse
