// Rows of a 1x1 convolution, where the step of another layer wants them.
#pragma once

#include <array>

#include "conv/direct/direct.h"
#include "conv/direct/direct_step.h"

namespace resfuse {

class ExpandedRows final : private DirectStep {
  public:
    ExpandedRows(const StepContext& context, std::size_t layer) : DirectStep(context, layer, direct()) {}

    // A row of an image, of some panels' channels, to pixels some floats apart.
    void compute(index_t image, index_t row, Range panels, float* to, index_t pixel, const Wave& wave) const {
        const Tensor& x = wave.tensors[layer_.input];
        GemmArgs g = panel_args(panels, segments_, reduction(), wave);
        g.a = x.at(image * x.image + row * x.row);
        g.lda = x.pixel;
        g.rows = out_.w;
        g.c = to;
        g.ldc = pixel;
        multiply(g, panels.begin, DType::fp32, wave);
    }

  private:
    index_t tasks(int, index_t) const override { return 0; }
    void run(int, index_t, const Wave&, void*) const override {}

    const std::array<index_t, 1> segments_{0};
};

}  // namespace resfuse
