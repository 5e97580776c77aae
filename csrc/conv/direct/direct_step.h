// What the steps of direct convolutions share: operands of products copied from the input, the product of some rows
// with some panels of weights, and softmax. Operands are floats; bytes or words where a layer computes with bytes; or
// the input's own elements where these are multiplied in pairs.
#pragma once

#include "conv/conv_step.h"

namespace resfuse {

enum class Operands { floats, bytes, pairs };

class DirectStep : public ConvStep {
  public:
    int stages() const override { return layer_.activation == Activation::softmax ? 2 : 1; }

  protected:
    static constexpr index_t kBlockBytes = 512 * 1024;  // of the rows of a product that a task keeps in L2

    DirectStep(const StepContext& context, std::size_t index, const ConvAlgorithm& algorithm);

    // Whether products can read the input where it lies.
    bool reads_in_place() const { return in_place_; }

    index_t block_operands() const { return kBlockBytes / operand_bytes_; }
    index_t operand_bytes() const { return operand_bytes_; }
    std::size_t operands_in_bytes(index_t operands) const {
        return static_cast<std::size_t>(operands * operand_bytes_);
    }
    void* operand_at(void* data, index_t i) const { return static_cast<std::byte*>(data) + i * operand_bytes_; }
    const void* operand_at(const void* data, index_t i) const {
        return static_cast<const std::byte*>(data) + i * operand_bytes_;
    }
    index_t reduction() const { return runs_.depth(); }
    const Units& units() const { return units_; }
    // Operands that units of a product read behind the last one of a row.
    index_t operands_behind() const {
        return operands_ == Operands::bytes || runs_.joined ? kLineBytes / operand_bytes_ : 0;
    }
    // Between rows of so many operands.
    index_t padded_row(index_t operands) const;

    void copy_operands(const Wave& wave, const BandArgs& band) const;
    // Some output pixels' windows, or of a 1x1 convolution their pixels, as rows.
    void gather_rows(const Wave& wave, Range rows, void* to, index_t pitch) const;

    // The next few panels of one group, as even in number as can be, whose weights fit well into L2.
    Range chunk_from(index_t panel, index_t end) const;

    // The parts of a product that do not depend on where its rows are. Panels of one group.
    GemmArgs panel_args(Range panels, std::span<const index_t> segments, index_t segment_length,
                        const Wave& wave) const;

    // `g` is of panels from `panel` on, into memory of some type's elements.
    void multiply(const GemmArgs& g, index_t panel, DType type, const Wave& wave) const;

    void softmax(index_t image, const Wave& wave) const;

    const Layer* const pooled_;  // the pooling layer behind, or null
    const Runs runs_;

  private:
    static constexpr index_t kLineBytes = 64;

    index_t panel_bytes() const;

    const Operands operands_;
    const index_t operand_bytes_;  // and of weights
    const Units units_;
    const bool in_place_;
};

// One product over the pixels of the wave, or over their windows (direct_flat_step.cpp).
std::unique_ptr<Step> make_direct_flat_step(const StepContext& context, std::size_t layer,
                                            const ConvAlgorithm& algorithm, bool gathered);

}  // namespace resfuse
