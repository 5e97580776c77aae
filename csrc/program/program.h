// A Program: layers over buffers, without shapes of images and without weights. Building one fixes the structure only;
// a Plan (plan.h) fixes everything for one input size, a WeightSet (weights.h) holds one version of the parameters.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "machine/dispatch.h"

namespace resfuse {

enum class LayerKind { conv, max_pool, avg_pool, global_avg_pool, affine };

// How a convolution is computed. `automatic`, `automatic_once` and `winograd` are requests; the plan holds one of the
// others. `automatic_once` is for weights that are packed for one call: not for Strassen's sums of them.
enum class Algorithm : int {
    direct,
    winograd_f2,
    winograd_f4,
    winograd_stride2,
    grouped,
    grouped_f2,
    strassen,
    winograd_rows,
    paired,
    automatic,
    automatic_once,
    winograd
};
constexpr std::size_t kConcreteAlgorithms = 9;

// The kernels of a Winograd algorithm.
inline const WinogradKernels& winograd_kernels(const KernelTable& kernels, Algorithm algorithm) {
    return kernels.winograd[static_cast<int>(algorithm) - static_cast<int>(Algorithm::winograd_f2)];
}

// Of what is asked for.
inline bool is_automatic(Algorithm algorithm) {
    return algorithm == Algorithm::automatic || algorithm == Algorithm::automatic_once;
}
inline bool allows_winograd(Algorithm algorithm) {
    return algorithm != Algorithm::direct && algorithm != Algorithm::strassen && algorithm != Algorithm::paired;
}
inline bool allows_paired(Algorithm algorithm) { return is_automatic(algorithm) || algorithm == Algorithm::paired; }
inline bool allows_strassen(Algorithm algorithm) {
    return algorithm == Algorithm::automatic || algorithm == Algorithm::strassen;
}

const char* algorithm_name(Algorithm algorithm);
Algorithm parse_algorithm(const std::string& name);
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
};

// Height and width of an image.
struct Extent {
    index_t h, w;
};

// Throws std::invalid_argument for a shape of more floats than a process can address, so that no product of its
// lengths overflows.
void require_addressable(std::initializer_list<index_t> shape, const std::string& what);

// The window with the pads that "same" padding gives for an image; other windows as they are.
Window resolve_padding(Window window, Extent in);

// Output extent of a window over an image, as torch computes it; throws std::invalid_argument when it is not positive.
Extent window_extent(const Window& window, Extent in, const std::string& layer);

struct Layer {
    LayerKind kind;
    std::string name;
    int input;
    int output;
    int residual = -1;  // buffer added before the activation, or -1
    int gate = -1;      // of an affine layer: buffer of one pixel that it multiplies by, or -1
    Window window;
    index_t in_channels = 0;
    index_t out_channels = 0;
    index_t groups = 1;
    Activation activation = Activation::none;
    float slope = 0.0f;           // of leaky_relu
    bool counts_padding = false;  // of an average pool: as zeros
    Algorithm algorithm = Algorithm::automatic;

    // Groups of as many output as input channels that divide a vector and are smaller than it.
    bool has_small_groups(int vector_floats) const {
        return groups > 1 && in_channels == out_channels && group_in() < vector_floats &&
               vector_floats % group_in() == 0;
    }
    // Whether F(2x2, 3x3) computes a layer of small groups.
    bool has_grouped_f2() const {
        return window.kernel_h == 3 && window.kernel_w == 3 && window.stride_h == 1 && window.stride_w == 1 &&
               !window.is_dilated();
    }
    index_t group_in() const { return in_channels / groups; }
    index_t group_out() const { return out_channels / groups; }
    // Whether the activation is a lower clamp at most.
    bool clamps() const { return activation == Activation::none || activation == Activation::relu; }
    // With which stride a Winograd algorithm computes this layer; 0: none does. The direct sums of smaller groups are
    // so short that its error would be more than four times theirs.
    index_t winograd_stride() const {
        constexpr index_t kFewestChannelsOfGroup = 8;
        const index_t most = groups == 1 ? 2 : 1;
        const bool applies = kind == LayerKind::conv && window.kernel_h == 3 && window.kernel_w == 3 &&
                             window.stride_h == window.stride_w && window.stride_h <= most && !window.is_dilated() &&
                             (groups == 1 || group_in() >= kFewestChannelsOfGroup) && clamps();
        return applies ? window.stride_h : 0;
    }
    // Whether F(2, 7) along rows computes this layer, a stem.
    bool has_winograd_rows() const {
        constexpr index_t kMostChannels = 4;
        return kind == LayerKind::conv && groups == 1 && in_channels <= kMostChannels && window.kernel_w == 7 &&
               window.stride_w == 2 && !window.is_dilated() && clamps();
    }
    // Whether this is a 1x1 convolution whose epilogue does all of its activation.
    bool is_one_by_one() const {
        return kind == LayerKind::conv && groups == 1 && window.kernel_h == 1 && window.kernel_w == 1 &&
               !window.has_padding() && clamps();
    }
    // Whether products in pairs of terms compute this layer.
    bool has_paired(const KernelTable& kernels) const {
        return kernels.paired_gemm != nullptr && kind == LayerKind::conv && groups == 1 && !window.is_dilated() &&
               in_channels % kLineFloats == 0 && clamps();
    }
    // Whether Strassen's algorithm computes this layer: the halves of its channels must be whole vectors and panels.
    bool has_strassen(const KernelTable& kernels) const {
        return is_one_by_one() && in_channels % (2 * kernels.vector_floats) == 0 &&
               out_channels % (2 * kernels.tile_cols) == 0;
    }
};

class Program {
  public:
    explicit Program(Isa isa) : isa_(isa) {}

    // Each returns the number of the buffer that it makes. All throw std::invalid_argument for what cannot be.
    int add_input(index_t channels);
    int add_conv(Layer layer);
    int add_max_pool(const std::string& name, int input, const Window& window);
    int add_avg_pool(const std::string& name, int input, const Window& window, bool counts_padding);
    int add_global_avg_pool(const std::string& name, int input);
    int add_affine(Layer layer);
    void add_output(int buffer);

    // Plans and weight sets refer to the layers, so the first of them ends the building.
    void freeze() const { frozen_ = true; }

    Isa isa() const { return isa_; }
    const KernelTable& kernels() const { return kernels_of(isa_); }
    const std::vector<Layer>& layers() const { return layers_; }
    const std::vector<int>& inputs() const { return inputs_; }
    const std::vector<int>& outputs() const { return outputs_; }
    int buffers() const { return static_cast<int>(channels_.size()); }
    index_t channels(int buffer) const { return channels_[static_cast<std::size_t>(buffer)]; }

  private:
    void check_buffer(int buffer, const std::string& what) const;
    int add_buffer(index_t channels);
    int add_pool(LayerKind kind, const std::string& name, int input, const Window& window, bool counts_padding);

    Isa isa_;
    mutable bool frozen_ = false;
    std::vector<index_t> channels_;
    std::vector<Layer> layers_;
    std::vector<int> inputs_;
    std::vector<int> outputs_;
};

}  // namespace resfuse
