#include "conv/winograd/winograd.h"

#include <algorithm>

#include "conv/cost.h"
#include "conv/pack.h"
#include "conv/winograd/blocking.h"
#include "weights/int8_weights.h"
#include "weights/panels.h"

namespace resfuse {

namespace {

// Vector operations per element and transform, loads and stores counted in; measured.
constexpr double kTransformOperations = 9.0;
constexpr double kInt8TransformOperations = 4.0;  // words, on the way in
// Of its products' terms, what short reductions leave; and next to products so fast, streamed weights are waited for,
// and what the split form streams entirely. Measured with VNNI.
constexpr double kInt8Efficiency = 0.75, kInt8NotHidden = 0.4, kInt8NotHiddenSplit = 1.0;

// Of a product of some tiles with a panel of weights: beginning it, and rows that fill no register tile; measured.
constexpr double kCallCycles = 60.0;

// What its products and transforms cost.
struct WinogradRates {
    double terms;                 // of a product (Units)
    double transform_operations;  // as above
    double not_hidden;            // as cycles_of takes it
    double call_cycles = 0.0;     // of a product with a panel of weights
};

// Of real numbers.
class Winograd : public ConvAlgorithm {
  public:
    Winograd(const char* name, std::vector<std::string_view> requests, index_t stride,
             const WinogradKernels& (*of)(const KernelTable&))
        : name_(name), requests_(std::move(requests)), stride_(stride), of_(of) {}

    const char* name() const override { return name_; }
    std::vector<std::string_view> requests() const override { return requests_; }

    bool applies(const Layer& layer, Extent, const KernelTable& kernels) const override {
        return winograd_stride(layer) == stride_ && !has_small_groups(layer, kernels);
    }

    double cycles(const ConvCall& call) const override {
        const Layer& layer = call.layer;
        const WinogradKernels& winograd = of_(call.kernels);
        const WinogradTiles tiles = winograd_tiles(winograd, call.out);
        // As one thread would do it: the choice must not depend on their number.
        const WinogradSchedule schedule = winograd_schedule(layer, winograd, tiles, call.batch, 1, call.kernels);
        const WinogradRates cost = rates(call.kernels, schedule.blocking.split);
        const double products = static_cast<double>(call.batch * tiles.products);
        const double transforms =
            static_cast<double>(call.batch * (tiles.products * layer.in_channels + tiles.sums * layer.out_channels)) *
            cost.transform_operations / call.kernels.vector_floats;
        const index_t blocks = ceil_div(call.batch * tiles.per_image(), schedule.blocking.block);
        const double calls = static_cast<double>(blocks * tiles.calls * panel_grid(layer, call.kernels).total);
        return cycles_of(product_cycles(products * static_cast<double>(layer.groups), layer.group_in(),
                                        layer.group_out(), call.kernels) /
                                 cost.terms +
                             transforms + calls * cost.call_cycles,
                         schedule.traffic, call.bytes_per_cycle, cost.not_hidden);
    }

    // Transformed weights take several times the memory.
    double required_speedup(const ConvAlgorithm& other) const override {
        return dynamic_cast<const Winograd*>(&other) == nullptr ? 1.05 : 1.0;
    }

    std::size_t packed_bytes(const Layer& layer, const KernelTable& kernels) const override {
        return winograd_packed_bytes(layer, of_(kernels), kernels);
    }

    void pack(const PackCall& call) const override {
        const WinogradKernels& winograd = of_(call.kernels);
        pack_panels(call,
                    winograd.weight_points * winograd.weight_points * call.layer.group_in() * call.kernels.tile_cols,
                    winograd.pack);
    }

    std::unique_ptr<Step> make_step(const StepContext& context, std::size_t layer) const override {
        return make_winograd_step(context, layer, *this, of_(context.kernels()));
    }

  protected:
    // Of the fused form, or the split one (WinogradBlocking).
    virtual WinogradRates rates(const KernelTable&, bool) const {
        return {1.0, kTransformOperations, kNotHidden, kCallCycles};
    }

  private:
    const char* name_;
    std::vector<std::string_view> requests_;
    index_t stride_;
    const WinogradKernels& (*of_)(const KernelTable&);
};

}  // namespace

std::vector<std::string_view> winograd_requests() { return {"winograd", "winograd_f2", "winograd_f4"}; }

bool allows_winograd(const Layer& layer) {
    const std::vector<std::string_view> names = winograd_requests();
    return is_automatic(layer.algorithm) || std::find(names.begin(), names.end(), layer.algorithm) != names.end();
}

// The direct sums of smaller groups are so short that Winograd's error would be more than four times theirs.
index_t winograd_stride(const Layer& layer) {
    constexpr index_t kFewestChannelsOfGroup = 8;
    const Window& w = layer.window;
    const index_t most = layer.groups == 1 ? 2 : 1;
    const bool applies = !layer.is_int8() && w.kernel_h == 3 && w.kernel_w == 3 && w.stride_h == w.stride_w &&
                         w.stride_h <= most && !w.is_dilated() &&
                         (layer.groups == 1 || layer.group_in() >= kFewestChannelsOfGroup) &&
                         (layer.clamps() || (layer.type == DType::fp32 && is_by_element(layer.activation)));
    return applies ? w.stride_h : 0;
}

namespace {

// Of bytes: the sums are the direct ones, bit for bit.
class WinogradInt8 final : public Winograd {
  public:
    WinogradInt8() : Winograd("winograd_int8", {"winograd"}, 1, winograd_int8_kernels) {}

    // Sums must be known to within what the results distinguish, as steps that are not given see to.
    bool applies(const Layer& layer, Extent, const KernelTable&) const override {
        return layer.is_int8() && layer.input_type == DType::u8 && most_magnitude(layer) > 0 &&
               layer.activation != Activation::softmax;
    }

    void pack(const PackCall& call) const override {
        const PanelGrid grid = panel_grid(call.layer, call.kernels);
        const std::size_t bytes = packed_bytes(call.layer, call.kernels) / static_cast<std::size_t>(grid.total);
        pack_int8_panels(call, call.kernels.int8.pack_winograd, bytes);
    }

  protected:
    WinogradRates rates(const KernelTable& kernels, bool split) const override {
        return {kernels.int8.winograd_terms * kInt8Efficiency, kInt8TransformOperations,
                split ? kInt8NotHiddenSplit : kInt8NotHidden};
    }
};

}  // namespace

const ConvAlgorithm& winograd_int8() {
    static const WinogradInt8 algorithm;
    return algorithm;
}

const ConvAlgorithm& winograd_f2() {
    static const Winograd algorithm("winograd_f2", {"winograd", "winograd_f2"}, 1, winograd_f2_kernels);
    return algorithm;
}

const ConvAlgorithm& winograd_f4() {
    static const Winograd algorithm("winograd_f4", {"winograd", "winograd_f4"}, 1, winograd_f4_kernels);
    return algorithm;
}

const ConvAlgorithm& winograd_stride2() {
    static const Winograd algorithm("winograd_stride2", winograd_requests(), 2, winograd_stride2_kernels);
    return algorithm;
}

}  // namespace resfuse
