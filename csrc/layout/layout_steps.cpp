// Changes of layout as steps of a plan.
#include "plan/image_step.h"

namespace resfuse {

namespace {

class LayoutStep final : public ImageStep {
  public:
    LayoutStep(const StepContext& context, int from, int to)
        : ImageStep(context, from, to, context.extents[static_cast<std::size_t>(to)].h),
          channels_(context.program.channels(to)) {}

  private:
    void run_part(index_t image, Range rows, const Wave& wave, float*) const override {
        const Tensor& y = wave.tensors[output_];
        copy_window(wave, input_, image, in_, {0, channels_},
                    {.y0 = rows.begin, .rows = rows.size(), .x0 = 0, .cols = in_.w},
                    y.data + image * y.image + rows.begin * y.row, y.pixel);
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
          extent_(context.extents[static_cast<std::size_t>(from)]),
          parts_(std::clamp<index_t>(ceil_div(4 * context.threads, context.images), 1, lines())) {
        thread_scratch = step_->thread_scratch;
        shared_scratch = step_->shared_scratch;
    }

    int stages() const override { return step_->stages() + 1; }

    index_t tasks(int stage, index_t images) const override {
        return stage < step_->stages() ? step_->tasks(stage, images) : images * parts_;
    }

    void run(int stage, index_t task, const Wave& wave, float* scratch) const override {
        if (stage < step_->stages()) return step_->run(stage, task, wave, scratch);
        const Tensor &x = wave.tensors[from_], &y = wave.tensors[to_];
        const index_t image = task / parts_;
        // Whole cache lines of the planes.
        const Range some = part(lines(), task % parts_, parts_);
        const index_t first = some.begin * kLineFloats, end = std::min(some.end * kLineFloats, extent_.h * extent_.w);
        wave.kernels.transpose({.x = x.data + image * x.image + first * x.pixel,
                                .rows = end - first,
                                .cols = channels_,
                                .pitch = x.pixel,
                                .y = y.data + image * y.image + first,
                                .y_pitch = y.channel});
    }

    bool pools() const override { return step_->pools(); }

  private:
    index_t lines() const { return ceil_div(extent_.h * extent_.w, kLineFloats); }

    std::unique_ptr<Step> step_;
    int from_, to_;
    index_t channels_;
    Extent extent_;
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
