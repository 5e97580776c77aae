// One version of a Program's parameters, packed on demand in the layouts that plans ask for.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "memory/aligned.h"
#include "plan/algorithm.h"
#include "weights/int8_weights.h"

namespace resfuse {

class WeightSet {
  public:
    explicit WeightSet(std::shared_ptr<const Program> program);

    // Layers are numbered as in the Program. Throws std::invalid_argument where shapes do not fit.
    void set(std::size_t layer, WeightSource source);
    // Of an affine layer, by channel; empty: ones, zeros.
    void set_affine(std::size_t layer, const std::vector<double>& scale, const std::vector<double>& bias);

    // Of any layer whose activation is prelu: one for each channel, or one for all.
    void set_slopes(std::size_t layer, const std::vector<double>& slopes);

    // Packs what `algorithms` (one per layer) asks for and is not there yet. Thread-safe.
    void prepare(const std::vector<const ConvAlgorithm*>& algorithms, int threads);

    // Whether it is all there. Thread-safe.
    bool is_prepared(const std::vector<const ConvAlgorithm*>& algorithms) const;

    // Valid after prepare().
    const void* packed(std::size_t layer, const ConvAlgorithm& algorithm) const;
    const float* scale(std::size_t layer) const { return entries_[layer].scale.data(); }
    const float* bias(std::size_t layer) const { return entries_[layer].bias.data(); }
    // From a channel or a panel's first one on, with a vector's room behind the last; null: there are none.
    const float* slopes(std::size_t layer, index_t at = 0) const {
        return entries_[layer].slopes.empty() ? nullptr : entries_[layer].slopes.data() + at;
    }
    // Of layers that compute with bytes: what makes of sums of bytes those of (byte - zero point).
    const std::int32_t* offset(std::size_t layer) const {
        return reinterpret_cast<const std::int32_t*>(entries_[layer].offset.data());
    }
    // The same of direct products, whose instructions may take something from each byte (Int8Kernels).
    const std::int32_t* direct_offset(std::size_t layer) const {
        const Entry& entry = entries_[layer];
        return entry.direct_offset.empty() ? offset(layer)
                                           : reinterpret_cast<const std::int32_t*>(entry.direct_offset.data());
    }

    // And what lies in the middle of a channel's possible sums of bytes.
    const std::int32_t* centre(std::size_t layer) const {
        return reinterpret_cast<const std::int32_t*>(entries_[layer].centre.data());
    }

    // The integers that stand for a layer's weights where it computes with bytes.
    Int8Weights int8(std::size_t layer, int threads) const;

    std::size_t bytes() const;
    const Program& program() const { return *program_; }

  private:
    struct Entry {
        WeightSource source;
        AlignedFloats scale;  // tile_cols floats per panel
        AlignedFloats bias;
        AlignedFloats slopes;                                 // likewise, of prelu
        AlignedBytes offset, direct_offset, centre;           // s32 like them, where bytes are computed
        std::map<const ConvAlgorithm*, AlignedBytes> packed;  // all of them, empty until they are asked for
    };
    // Scale, bias and offset of a layer that computes with bytes.
    void finish_int8(std::size_t layer, const Int8Weights& weights);

    std::shared_ptr<const Program> program_;
    std::vector<Entry> entries_;
    mutable std::mutex mutex_;
};

}  // namespace resfuse
