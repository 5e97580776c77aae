// A direct convolution row by row whose band is transformed: the rows of a band become products' operands, two outputs
// of a row become five products.
#include "conv/cost.h"
#include "conv/direct/direct_rows_step.h"
#include "conv/winograd_rows/winograd_rows.h"

namespace resfuse {

namespace {

index_t pairs_of(const StepContext& context, std::size_t index) {
    return ceil_div(context.buffer(context.layers[index].output).extent.w, 2);
}

class WinogradRowsStep final : public DirectRowsStep {
  public:
    WinogradRowsStep(const StepContext& context, std::size_t index)
        : DirectRowsStep(context, index, winograd_rows(),
                         {.cols = 4 * pairs_of(context, index) + 5,
                          .transformed = kRowProducts * pairs_of(context, index),
                          .always = true}) {
        plan(context);
    }

  protected:
    index_t plan_band(index_t out_rows) override {
        // A vector behind each end, which the transform may read or write.
        v_pitch_ = band_rows(out_rows) * 2 * layer_.in_channels + kLineFloats;
        infinity_pitch_ = band_rows(out_rows) * layer_.in_channels + kLineFloats;
        v_ = DirectRowsStep::plan_band(out_rows) + kLineFloats;
        infinity_ = v_ + (kRowFrequencies - 1) * pairs() * v_pitch_;
        m_ = infinity_ + pairs() * infinity_pitch_;
        return m_ + kRowFrequencies * m_frequency();
    }

    // Transformed rows lie side by side in each pair of outputs, so that those of a window are one run of floats.
    void multiply_rows(index_t image, Range rows, Range panels, const void*, const Wave& wave, void* memory, void* to,
                       index_t pixel) const override {
        const Window& w = layer_.window;
        float* const scratch = static_cast<float*>(memory);
        const index_t channels = layer_.in_channels, frequency = pairs() * v_pitch_;
        float *const v = scratch + v_, *const infinity = scratch + infinity_, *const m = scratch + m_;
        for (index_t i = 0; i < band_rows(rows.size()); ++i)
            wave.kernels.winograd_row_input({.band = scratch + i * pitch_,
                                             .pairs = pairs(),
                                             .channels = channels,
                                             .v = v + i * 2 * channels,
                                             .frequency = frequency,
                                             .pitch = v_pitch_,
                                             .infinity = infinity + i * channels,
                                             .infinity_pitch = infinity_pitch_});
        const index_t none = 0;
        GemmArgs g{};
        g.segment_offset = &none;
        g.segments = 1;
        g.chunk = gemm_chunk(wave.kernels);
        g.rows = pairs();
        g.cols = g.ldc = grid_.tile_cols;
        g.floor = activation_floor(Activation::none);
        for (index_t p = panels.begin; p < panels.end; ++p) {
            const index_t channel = grid_.channel(p);
            for (index_t oy = rows.begin; oy < rows.end; ++oy) {
                const index_t row = oy - rows.begin, first = row * w.stride_h * channels;
                const float* b = weights(wave) + p * winograd_rows_panel_floats(layer_, grid_);
                for (index_t f = 0; f < kRowFrequencies; ++f) {
                    const bool finite = f + 1 < kRowFrequencies;
                    g.a = finite ? v + f * frequency + 2 * first : infinity + first;
                    g.lda = finite ? v_pitch_ : infinity_pitch_;
                    g.segment_length = w.kernel_h * (finite ? 2 : 1) * channels;
                    g.b = b;
                    g.c = m + f * m_frequency();
                    wave.fp32().gemm(g);
                    b += g.segment_length * grid_.tile_cols;
                }
                const Residual residual = residual_at(wave, layer_, image, oy, channel);
                writes(wave).winograd_row_output({.m = m,
                                                  .frequency = m_frequency(),
                                                  .width = out_.w,
                                                  .cols = grid_.cols(p),
                                                  .scale = scale(wave, p * grid_.tile_cols),
                                                  .bias = bias(wave, p * grid_.tile_cols),
                                                  .residual = residual.data,
                                                  .residual_pixel = residual.pixel,
                                                  .floor = activation_floor(layer_.activation),
                                                  .y = element_at(to, row * out_.w * pixel + channel, layer_.type),
                                                  .pixel = pixel});
            }
        }
    }

  private:
    index_t pairs() const { return ceil_div(out_.w, 2); }  // of outputs of a row
    index_t m_frequency() const { return pairs() * grid_.tile_cols; }

    // Floats between the pairs of transformed rows, and where these and their products are in scratch.
    index_t v_pitch_ = 0, infinity_pitch_ = 0;
    index_t v_ = 0, infinity_ = 0, m_ = 0;
};

}  // namespace

std::unique_ptr<Step> make_winograd_rows_step(const StepContext& context, std::size_t layer) {
    return std::make_unique<WinogradRowsStep>(context, layer);
}

}  // namespace resfuse
