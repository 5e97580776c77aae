// A 1x1 convolution and the depthwise one behind it, as inverted residuals begin (Sandler et al., 2018, "MobileNetV2"),
// as one step: the wide feature map between them never leaves the caches.
#pragma once

#include "plan/algorithm.h"

namespace resfuse {

// Whether a depthwise layer's step can compute the layer before it as well, which it alone reads, and gains by that.
bool can_expand(const StepContext& context, std::size_t expand, std::size_t depthwise);

std::unique_ptr<Step> make_expanded_depthwise_step(const StepContext& context, std::size_t expand,
                                                   std::size_t depthwise);

}  // namespace resfuse
