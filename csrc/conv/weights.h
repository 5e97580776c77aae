// One version of a Program's parameters, packed on demand in the layouts that plans ask for.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <vector>

#include "memory/aligned.h"
#include "program/program.h"

namespace resfuse {

// The weight tensor [out_channels, in_channels / groups, kernel_h, kernel_w] as the user holds it (never copied) with
// the folded batch norm beside it: y = scale[k] * (weight[k] * x) + bias[k]. Direct kernels apply the scale in their
// epilogue: folded into the weights, its rounding would be the same for every pixel and not average out in the head.
struct WeightSource {
    const float* weight = nullptr;
    std::array<index_t, 4> strides{};  // in floats
    std::vector<double> scale;         // empty: all ones
    std::vector<float> bias;           // empty: none
};

// Panels of a convolution: groups never share one.
struct PanelGrid {
    index_t per_group;   // panels of one group
    index_t total;       // panels of all groups
    index_t reduction;   // kernel_h * kernel_w * channels of one group
    index_t group_cols;  // output channels of one group
    index_t tile_cols;

    // First output channel of a panel, within its group and of all.
    index_t in_group(index_t panel) const { return panel % per_group * tile_cols; }
    index_t channel(index_t panel) const { return panel / per_group * group_cols + in_group(panel); }
    // Output channels of some panels of one group.
    index_t cols(index_t panel, index_t panels = 1) const {
        const index_t room = panels * tile_cols, left = group_cols - in_group(panel);
        return room < left ? room : left;
    }
};
PanelGrid panel_grid(const Layer& layer, const KernelTable& kernels);

// Of a panel of weights for Algorithm::winograd_rows.
index_t winograd_rows_panel_floats(const Layer& layer, const PanelGrid& grid);

// Packed bytes of one convolution under one algorithm.
std::size_t packed_bytes(const Layer& layer, Algorithm algorithm, const KernelTable& kernels);

// Of a layer that is packed for Strassen's algorithm or products in pairs of terms.
struct BalancedWeights {
    const float* panels;
    index_t panel;            // floats of a panel, of Strassen's of each half of the output channels
    const float* scale;       // the layer's times the powers of two that its products want
    const float* step_scale;  // what the input must be multiplied by, by step of the reduction
};
BalancedWeights balanced_weights(const Layer& layer, Algorithm algorithm, const KernelTable& kernels,
                                 const float* packed);

class WeightSet {
  public:
    explicit WeightSet(std::shared_ptr<const Program> program);

    // Layers are numbered as in the Program. Throws std::invalid_argument where shapes do not fit.
    void set(std::size_t layer, WeightSource source);
    // Of an affine layer, by channel; empty: ones, zeros.
    void set_affine(std::size_t layer, const std::vector<double>& scale, const std::vector<float>& bias);

    // Packs what `algorithms` (one per layer) asks for and is not there yet. Thread-safe.
    void prepare(const std::vector<Algorithm>& algorithms, int threads);

    // Valid after prepare().
    const float* packed(std::size_t layer, Algorithm algorithm) const;
    const float* scale(std::size_t layer) const { return entries_[layer].scale.data(); }
    const float* bias(std::size_t layer) const { return entries_[layer].bias.data(); }

    std::size_t bytes() const;
    const Program& program() const { return *program_; }

  private:
    struct Entry {
        WeightSource source;
        AlignedFloats scale;  // tile_cols floats per panel
        AlignedFloats bias;
        std::array<AlignedFloats, kConcreteAlgorithms> packed;
    };
    void pack(std::size_t layer, Algorithm algorithm, int threads);
    void pack_panels(std::size_t layer, Algorithm algorithm, int threads, AlignedFloats& packed) const;
    void pack_balanced(std::size_t layer, Algorithm algorithm, int threads, AlignedFloats& packed) const;

    std::shared_ptr<const Program> program_;
    std::vector<Entry> entries_;
    mutable std::mutex mutex_;
};

}  // namespace resfuse
