// Layers that only move elements: concatenations, slices and paddings as steps of a plan. What lies in place already is
// not moved.
#include "plan/image_step.h"
#include "plan/views.h"

namespace resfuse {

namespace {

// Some channels of one buffer that become some of another.
struct Move {
    int from, to;
    index_t first_from, first_to, channels;
};

class MoveStep final : public ImageStep {
  public:
    MoveStep(const StepContext& context, const Layer& layer, std::vector<Move> moves)
        : ImageStep(context, layer.input, layer.output, context.buffer(layer.output).extent.h),
          window_(layer.window),
          moves_(std::move(moves)) {}

  private:
    void run_part(index_t image, Range rows, const Wave& wave, void*) const override {
        for (const Move& move : moves_) {
            const Tensor &x = wave.tensors[move.from], &y = wave.tensors[move.to];
            void* const to = y.at(image * y.image + rows.begin * y.row + move.first_to);
            wave.kernels_of(move.from).copy_image(window_copy(
                x, image, in_, {move.first_from, move.first_from + move.channels},
                {.y0 = rows.begin - window_.pad_top, .rows = rows.size(), .x0 = -window_.pad_left, .cols = out_.w}, to,
                y.pixel));
        }
    }

    const Window& window_;
    std::vector<Move> moves_;
};

std::vector<Move> moves_of(const StepContext& context, const Layer& layer) {
    if (layer.kind == LayerKind::pad) return {{layer.input, layer.output, 0, 0, layer.out_channels}};
    std::vector<Move> moves;
    if (layer.kind == LayerKind::slice) {
        if (!lies_in(context.buffers, layer.output, layer.input, layer.first_channel))
            moves.push_back({layer.input, layer.output, layer.first_channel, 0, layer.out_channels});
        return moves;
    }
    index_t channel = 0;
    for (const int part : layer.parts) {
        const index_t channels = context.buffer(part).channels;
        if (!lies_in(context.buffers, part, layer.output, channel))
            moves.push_back({part, layer.output, 0, channel, channels});
        channel += channels;
    }
    return moves;
}

}  // namespace

std::unique_ptr<Step> make_move_step(const StepContext& context, std::size_t l) {
    const Layer& layer = context.layers[l];
    std::vector<Move> moves = moves_of(context, layer);
    if (moves.empty()) return make_fused_away_step();
    return std::make_unique<MoveStep>(context, layer, std::move(moves));
}

}  // namespace resfuse
