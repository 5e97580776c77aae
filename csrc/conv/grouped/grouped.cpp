#include "conv/grouped/grouped.h"

#include <algorithm>

#include "conv/cost.h"
#include "conv/direct/direct.h"
#include "conv/expanded/expanded_depthwise.h"
#include "conv/pack.h"
#include "conv/winograd/winograd.h"
#include "machine/cpu.h"
#include "memory/aligned.h"
#include "weights/panels.h"

namespace resfuse {

namespace {

constexpr double kEfficiency = 0.78;  // share of the peak rate of multiply-adds; measured
// Of F(2x2, 3x3), a vector of outputs; of groups of a whole vector through L1; measured.
constexpr double kTransformCycles = 9.0, kVectorTransformCycles = 27.0;

double rate(const ConvCall& call) { return multiply_adds_per_cycle(call.kernels.vector_floats) * kEfficiency; }

index_t vectors(const Layer& layer, const KernelTable& kernels) {
    return ceil_div(layer.out_channels, kernels.vector_floats);
}

bool are_whole_vectors(const Layer& layer, const KernelTable& kernels) {
    return layer.group_in() == kernels.vector_floats;
}

// Weights of groups of a whole vector stream into L2 from beyond it, however few they are: each layer has others.
double stream_cycles(const ConvAlgorithm& algorithm, const ConvCall& call) {
    return are_whole_vectors(call.layer, call.kernels) ? streamed_bytes(algorithm, call) / call.bytes_per_cycle : 0.0;
}

std::size_t bytes_of(const Layer& layer, index_t points, const KernelTable& kernels) {
    return float_bytes(vectors(layer, kernels) * kernels.vector_floats * points * layer.group_in());
}

// Where a vector of weights lies in those of a vector of channels, and which input channels it is of (GroupedArgs).
class Order {
  public:
    // `taps`: of a row of the kernel; 1 of Winograd's products, which have no neighbours.
    Order(const Layer& layer, const KernelTable& kernels, index_t taps)
        : group_(layer.group_in()), whole_(are_whole_vectors(layer, kernels)), taps_(whole_ ? taps : 1) {}

    index_t vector(index_t point, index_t i) const { return (point / taps_ * group_ + i) * taps_ + point % taps_; }
    index_t input(index_t lane, index_t i) const { return whole_ ? i : (lane ^ i) % group_; }

  private:
    index_t group_;
    bool whole_;  // groups are whole vectors
    index_t taps_;
};

// The scale stays with the epilogue.
void pack_groups(const PackCall& call, index_t points, index_t taps, void (*pack_panel)(const PackPanelArgs&)) {
    const Layer& layer = call.layer;
    const KernelTable& kernels = call.kernels;
    const index_t group = layer.group_in();
    float* packed = call.floats();
    const index_t vector = kernels.vector_floats;
    const Order order(layer, kernels, taps);
    AlignedFloats panel(static_cast<std::size_t>(points * group * kernels.tile_cols));
    PackPanelArgs args = pack_args(layer, call.source);
    args.packed = panel.data();
    for (index_t k = 0; k < layer.out_channels; k += vector, packed += points * group * vector) {
        args.first_k = k;
        args.cols = std::min(vector, layer.out_channels - k);
        pack_panel(args);
        for (index_t point = 0; point < points; ++point)
            for (index_t i = 0; i < group; ++i)
                for (index_t lane = 0; lane < vector; ++lane)
                    packed[order.vector(point, i) * vector + lane] =
                        panel.data()[(point * group + order.input(lane, i)) * kernels.tile_cols + lane];
    }
}

// The same of quantised weights.
void pack_whole_numbers(const PackCall& call, index_t points) {
    const Layer& layer = call.layer;
    const index_t group = layer.group_in(), vector = call.kernels.vector_floats;
    const Order order(layer, call.kernels, layer.window.kernel_w);
    float* packed = call.floats();
    for (index_t k = 0; k < layer.out_channels; k += vector, packed += points * group * vector)
        for (index_t point = 0; point < points; ++point)
            for (index_t i = 0; i < group; ++i)
                for (index_t lane = 0; lane < vector; ++lane) {
                    const index_t channel = k + lane;
                    const bool there = channel < layer.out_channels;
                    packed[order.vector(point, i) * vector + lane] =
                        there ? call.int8[(channel * points + point) * group + order.input(lane, i)] : 0.0f;
                }
}

class Grouped final : public ConvAlgorithm {
  public:
    const char* name() const override { return "grouped"; }
    std::vector<std::string_view> requests() const override { return {"direct"}; }

    bool applies(const Layer& layer, Extent, const KernelTable& kernels) const override {
        return has_small_groups(layer, kernels);
    }

    // Products elementwise.
    double cycles(const ConvCall& call) const override {
        const index_t depth = call.layer.group_in() * points(call.layer);
        return static_cast<double>(call.batch * vectors(call.layer, call.kernels) * call.out.h * call.out.w * depth) /
                   rate(call) +
               stream_cycles(*this, call);
    }

    std::size_t packed_bytes(const Layer& layer, const KernelTable& kernels) const override {
        return bytes_of(layer, points(layer), kernels);
    }

    void pack(const PackCall& call) const override {
        if (call.layer.is_int8()) return pack_whole_numbers(call, points(call.layer));
        pack_groups(call, points(call.layer), call.layer.window.kernel_w, call.kernels.pack_direct);
    }

    std::unique_ptr<Step> make_step(const StepContext& context, std::size_t layer) const override {
        return make_grouped_step(context, layer, *this);
    }

    bool joins(const StepContext& context, std::size_t before, const ConvAlgorithm* by,
               std::size_t layer) const override {
        return by == &direct() && can_expand(context, before, layer);
    }
    std::unique_ptr<Step> make_joined_step(const StepContext& context, std::size_t before,
                                           std::size_t layer) const override {
        return make_expanded_depthwise_step(context, before, layer);
    }

  private:
    static index_t points(const Layer& layer) { return layer.window.kernel_h * layer.window.kernel_w; }
};

class GroupedF2 final : public ConvAlgorithm {
  public:
    const char* name() const override { return "grouped_f2"; }
    std::vector<std::string_view> requests() const override { return winograd_requests(); }

    bool applies(const Layer& layer, Extent, const KernelTable& kernels) const override {
        const Window& w = layer.window;
        return has_small_groups(layer, kernels) && !layer.is_int8() && w.kernel_h == 3 && w.kernel_w == 3 &&
               w.stride_h == 1 && w.stride_w == 1 && !w.is_dilated();
    }

    double cycles(const ConvCall& call) const override {
        const bool whole = are_whole_vectors(call.layer, call.kernels);
        const index_t width = whole ? 2 : 4;  // else blocks of two tiles
        const double outputs = static_cast<double>(call.batch * vectors(call.layer, call.kernels) *
                                                   ceil_div(call.out.h, 2) * ceil_div(call.out.w, width) * 2 * width);
        return outputs * (static_cast<double>(4 * call.layer.group_in()) / rate(call) +
                          (whole ? kVectorTransformCycles : kTransformCycles)) +
               stream_cycles(*this, call);
    }

    std::size_t packed_bytes(const Layer& layer, const KernelTable& kernels) const override {
        return bytes_of(layer, points(kernels), kernels);
    }

    void pack(const PackCall& call) const override {
        pack_groups(call, points(call.kernels), 1, winograd_f2_kernels(call.kernels).pack);
    }

    std::unique_ptr<Step> make_step(const StepContext& context, std::size_t layer) const override {
        return make_grouped_step(context, layer, *this);
    }

  private:
    static index_t points(const KernelTable& kernels) {
        const index_t points = winograd_f2_kernels(kernels).weight_points;
        return points * points;
    }
};

}  // namespace

const ConvAlgorithm& grouped() {
    static const Grouped algorithm;
    return algorithm;
}

const ConvAlgorithm& grouped_f2() {
    static const GroupedF2 algorithm;
    return algorithm;
}

}  // namespace resfuse
