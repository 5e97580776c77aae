// Changes of layout as steps of a plan.
#include "layout/planes.h"
#include "plan/image_step.h"

namespace resfuse {

namespace {

class LayoutStep final : public ImageStep {
  public:
    LayoutStep(const StepContext& context, int from, int to)
        : ImageStep(context, from, to, context.buffer(to).extent.h), channels_(context.program.channels(to)) {}

  private:
    void run_part(index_t image, Range rows, const Wave& wave, void*) const override {
        const Tensor &x = wave.tensors[input_], &y = wave.tensors[output_];
        wave.kernels_of(input_).copy_image(window_copy(x, image, in_, {0, channels_},
                                                       {.y0 = rows.begin, .rows = rows.size(), .x0 = 0, .cols = in_.w},
                                                       y.at(image * y.image + rows.begin * y.row), y.pixel));
    }

    index_t channels_;
};

class PlanesStep final : public Step {
  public:
    PlanesStep(const StepContext& context, std::unique_ptr<Step> step, int from, int to)
        : step_(std::move(step)),
          from_(from),
          to_(to),
          channels_(context.program.channels(from)),
          pixels_(context.buffer(from).extent.h * context.buffer(from).extent.w),
          parts_(std::clamp<index_t>(ceil_div(4 * context.threads, context.images), 1, lines_of_plane(pixels_))) {
        thread_scratch = step_->thread_scratch;
        shared_scratch = step_->shared_scratch;
    }

    int stages() const override { return step_->stages() + 1; }

    index_t tasks(int stage, index_t images) const override {
        return stage < step_->stages() ? step_->tasks(stage, images) : images * parts_;
    }

    void run(int stage, index_t task, const Wave& wave, void* scratch) const override {
        if (stage < step_->stages()) return step_->run(stage, task, wave, scratch);
        const Tensor &x = wave.tensors[from_], &y = wave.tensors[to_];
        const index_t image = task / parts_;
        copy_lines_to_planes(wave.kernels, x.type, x.at(image * x.image), x.pixel,
                             part(lines_of_plane(pixels_), task % parts_, parts_), channels_, pixels_,
                             y.at(image * y.image));
    }

    bool pools() const override { return step_->pools(); }
    const Layer* gathers() const override { return step_->gathers(); }

  private:
    std::unique_ptr<Step> step_;
    int from_, to_;
    index_t channels_;
    index_t pixels_;
    index_t parts_;
};

}  // namespace

std::unique_ptr<Step> make_layout_step(const StepContext& context, int from, int to) {
    return std::make_unique<LayoutStep>(context, from, to);
}

std::unique_ptr<Step> make_planes_step(const StepContext& context, std::unique_ptr<Step> step, int from, int to) {
    return std::make_unique<PlanesStep>(context, std::move(step), from, to);
}

}  // namespace resfuse
