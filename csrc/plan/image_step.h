// A step whose tasks are parts (rows, or ranges of channels) of single images.
#pragma once

#include <algorithm>

#include "plan/step.h"

namespace resfuse {

class ImageStep : public Step {
  public:
    ImageStep(const StepContext& context, int input, int output, index_t parts_of)
        : input_(input),
          output_(output),
          in_(context.buffer(input).extent),
          out_(context.buffer(output).extent),
          parts_of_(parts_of),
          parts_(
              std::clamp<index_t>(ceil_div(4 * context.threads, context.images), 1, std::max<index_t>(parts_of, 1))) {}

    index_t tasks(int, index_t images) const override { return images * parts_; }

    void run(int, index_t task, const Wave& wave, void* scratch) const override {
        run_part(task / parts_, part(parts_of_, task % parts_, parts_), wave, scratch);
    }

  protected:
    virtual void run_part(index_t image, Range range, const Wave& wave, void* scratch) const = 0;

    int input_, output_;
    Extent in_, out_;
    index_t parts_of_;  // rows or channel vectors of an image
    index_t parts_;     // tasks that they are cut into
};

}  // namespace resfuse
