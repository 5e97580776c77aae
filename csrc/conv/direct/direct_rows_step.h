// Direct convolution row by row: each output row is a product whose rows lie stride_w pixels apart in the input. Where
// there is padding, or the input is not dense NHWC, a task first copies the input rows that it needs into a zero-padded
// band in cache; of groups, the channels of a few at a time.
//
// Where max-pooling follows, a task pools its rows while they are in cache.
#pragma once

#include "conv/direct/direct_step.h"

namespace resfuse {

class DirectRowsStep : public DirectStep {
  public:
    DirectRowsStep(const StepContext& context, std::size_t index, const ConvAlgorithm& algorithm);

    bool pools() const override { return pools_; }
    index_t tasks(int stage, index_t images) const override;
    void run(int stage, index_t task, const Wave& wave, void* scratch) const override;

  protected:
    // How the rows of a band are read, where a subclass reads them in another way.
    struct BandShape {
        index_t cols;         // of a row
        index_t transformed;  // operands that are made of each row, for each of its channels
        bool always;          // whether rows are copied to a band in any case
    };
    DirectRowsStep(const StepContext& context, std::size_t index, const ConvAlgorithm& algorithm,
                   const BandShape& shape);

    // Cuts the work into tasks and lays out their scratch.
    void plan(const StepContext& context);

    // Operands of the band of so many output rows, and of what is made of it.
    virtual index_t plan_band(index_t out_rows);

    // Output rows of some panels of some groups to `to`, whose pixels are `pixel` elements apart. `first` is the first
    // input row's first channel of the first panel's group; a band begins at `scratch`.
    virtual void multiply_rows(index_t image, Range rows, Range panels, const void* first, const Wave& wave,
                               void* scratch, void* to, index_t pixel) const;

    index_t band_rows(index_t out_rows) const {
        const Window& w = layer_.window;
        return (out_rows - 1) * w.stride_h + (w.kernel_h - 1) * w.dilation_h + 1;
    }

    index_t pitch_ = 0;  // operands between input rows as the kernel reads them

  private:
    static constexpr index_t kBandChannels = 64;  // of groups, that a band holds

    bool can_pool() const;
    void set_segments();
    void plan_rows(const StepContext& context);
    void plan_max_pool(const StepContext& context);
    index_t map_row() const { return out_.w * layer_.out_channels; }
    void run_max_pool(index_t image, Range pool_rows, const Wave& wave, void* scratch) const;
    // The same of rows whose windows begin lda operands apart, at `first` the first ones.
    void multiply_lines(index_t image, Range rows, Range panels, const void* first, index_t lda, const Wave& wave,
                        void* to, index_t pixel) const;
    void run_rows(index_t image, Range rows, Range panels, const Wave& wave, void* scratch, void* to,
                  index_t pixel) const;

    BandShape shape_;
    bool band_;
    bool pools_;
    Extent pooled_out_{0, 0};
    index_t pool_rows_ = 0;         // of the max-pool, computed together
    std::size_t joined_bytes_ = 0;  // bytes of a row's joined windows, behind which the band lies
    std::size_t band_bytes_ = 0;    // of both, behind which rows of this layer lie
    index_t groups_at_once_ = 1;    // whose channels are read together
    index_t pixel_ = 0;             // operands between input pixels as the kernel reads them
    std::vector<index_t> segments_;
    index_t segment_length_ = 0;
    index_t bands_ = 1;         // bands of output rows of an image
    index_t panel_chunks_ = 1;  // parts that the panels are cut into
};

}  // namespace resfuse
