// What a plan asks of an algorithm for convolutions. Each algorithm declares itself in a folder of conv/;
// conv/algorithms.cpp lists them. Nothing else knows which there are.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "plan/step.h"
#include "program/weight_source.h"

namespace resfuse {

// A convolution over some images.
struct ConvCall {
    const Layer& layer;  // paddings resolved
    Extent out;
    index_t batch;
    double bytes_per_cycle;  // at which a core streams weights from beyond L2
    const KernelTable& kernels;
};

// Weights to be packed.
struct PackCall {
    const Layer& layer;
    const WeightSource& source;
    const float* scale;  // of output channels, as panels lay them
    const std::int8_t*
        int8;  // quantised weights [out_channels][kernel_h][kernel_w][group_in], where bytes are computed
    const KernelTable& kernels;
    int threads;
    void* packed;

    float* floats() const { return static_cast<float*>(packed); }
};

class ConvAlgorithm {
  public:
    virtual ~ConvAlgorithm() = default;
    virtual const char* name() const = 0;
    // The names by which a layer may ask for it, beside "auto".
    virtual std::vector<std::string_view> requests() const = 0;
    // Whether it computes a layer, whatever that asks for.
    virtual bool applies(const Layer& layer, Extent out, const KernelTable& kernels) const = 0;
    // Of one core, if it had the machine to itself.
    virtual double cycles(const ConvCall& call) const = 0;
    // So many times as fast as another one it has to be, to be preferred to it: where it takes more memory.
    virtual double required_speedup(const ConvAlgorithm&) const { return 1.0; }
    // Whether packing is worth it for one call ("auto_once", in training).
    virtual bool packs_for_one_call() const { return true; }
    // Whether its input may have any strides; all others read dense NHWC.
    virtual bool reads_any_strides() const { return false; }
    virtual std::size_t packed_bytes(const Layer& layer, const KernelTable& kernels) const = 0;
    virtual void pack(const PackCall& call) const = 0;
    virtual std::unique_ptr<Step> make_step(const StepContext& context, std::size_t layer) const = 0;

    // Whether its step of `layer` can compute the layer before that as well, which alone it reads, and gains by that:
    // a convolution that `by` would compute, or (null) another one.
    virtual bool joins(const StepContext&, std::size_t /*before*/, const ConvAlgorithm* /*by*/,
                       std::size_t /*layer*/) const {
        return false;
    }
    virtual std::unique_ptr<Step> make_joined_step(const StepContext& context, std::size_t /*before*/,
                                                   std::size_t layer) const {
        return make_step(context, layer);
    }
};

// All, the first that applies to a layer being the one that needs no reason. Defined by the room that holds them.
std::span<const ConvAlgorithm* const> conv_algorithms();

// The given name, where a layer may ask for it; throws std::invalid_argument where not.
std::string require_algorithm(const std::string& request);

// Of what is asked for: "auto", or "auto_once" for weights that are packed for one call.
bool is_automatic(const std::string& request);

// Of those that apply and that the layer's request allows, the cheapest.
const ConvAlgorithm& choose_algorithm(const ConvCall& call);

// The rate at which a core streams weights: from one run to the next those of a small program stay in L3.
double stream_bytes_per_cycle(const std::vector<Layer>& layers, const std::vector<PlannedBuffer>& buffers,
                              const KernelTable& kernels);

}  // namespace resfuse
