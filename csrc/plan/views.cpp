#include "plan/views.h"

#include <ranges>

namespace resfuse {

namespace {

PlannedBuffer& at(std::vector<PlannedBuffer>& buffers, int number) { return buffers[static_cast<std::size_t>(number)]; }

// Padding fills whole pixels.
std::vector<bool> fill_pixels(const std::vector<PlannedBuffer>& buffers, const std::vector<Layer>& layers) {
    std::vector<bool> found(buffers.size(), false);
    for (const Layer& layer : layers)
        if (layer.kind == LayerKind::pad) found[static_cast<std::size_t>(layer.output)] = true;
    return found;
}

}  // namespace

void find_views(std::vector<PlannedBuffer>& buffers, const std::vector<Layer>& layers) {
    for (const Layer& layer : layers)
        if (layer.kind == LayerKind::slice && !at(buffers, layer.output).is_external()) {
            at(buffers, layer.output).view_of = layer.input;
            at(buffers, layer.output).first_channel = layer.first_channel;
        }
    const std::vector<bool> fills = fill_pixels(buffers, layers);
    // Of those that join the same buffer the last one holds it: what is joined step by step lies in the last result.
    for (const Layer& layer : std::views::reverse(layers)) {
        if (layer.kind != LayerKind::concat) continue;
        index_t channel = 0;
        for (const int number : layer.parts) {
            PlannedBuffer& part = at(buffers, number);
            if (!part.is_external() && part.view_of < 0 && !fills[static_cast<std::size_t>(number)]) {
                part.view_of = layer.output;
                part.first_channel = channel;
            }
            channel += part.channels;
        }
    }
    for (PlannedBuffer& buffer : buffers)
        while (buffer.view_of >= 0 && at(buffers, buffer.view_of).view_of >= 0) {
            const PlannedBuffer& holder = at(buffers, buffer.view_of);
            buffer.first_channel += holder.first_channel;
            buffer.view_of = holder.view_of;
        }
}

bool lies_in(const std::vector<PlannedBuffer>& buffers, int part, int whole, index_t first_channel) {
    const PlannedBuffer &p = buffers[static_cast<std::size_t>(part)], &w = buffers[static_cast<std::size_t>(whole)];
    return root_of(buffers, part) == root_of(buffers, whole) && p.first_channel == w.first_channel + first_channel;
}

}  // namespace resfuse
