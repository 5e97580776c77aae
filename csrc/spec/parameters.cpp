#include "spec/parameters.h"

#include <cmath>
#include <stdexcept>
#include <string>

namespace resfuse {

namespace {

using Values = std::vector<double>;
constexpr const char* kRealTypes = "float32, float64, bfloat16 or float16";

class Reader {
  public:
    Reader(const Layer& layer, std::span<const StoredTensor> tensors) : layer_(layer), tensors_(tensors) {}

    // A real number for each channel.
    Values values(std::size_t place, const char* what, index_t channels) const {
        const StoredTensor& tensor = tensors_[place];
        if (tensor.is_integer()) refuse(what, std::string("is of type ") + stored_name(tensor.type), kRealTypes);
        if (tensor.size() != channels) refuse(what, "has shape " + shape_text(tensor.shape), std::to_string(channels));
        return stored_values(tensor);
    }
    Values values(const Place& place, const char* what, index_t channels) const {
        return place ? values(*place, what, channels) : Values{};
    }
    Values values(const Place& place, const char* what) const { return values(place, what, layer_.out_channels); }

    // One for each channel, or one for all.
    Values slopes(std::size_t place) const {
        const bool one = tensors_[place].size() == 1;
        return values(place, "slopes", one ? 1 : layer_.out_channels);
    }

    // [out_channels, in_channels / groups, kernel_h, kernel_w]
    StoredTensor weight(std::size_t place, bool integers) const {
        StoredTensor tensor = tensors_[place];
        const std::vector<index_t> want = {layer_.out_channels, layer_.group_in(), layer_.window.kernel_h,
                                           layer_.window.kernel_w};
        if (tensor.shape.size() == 2) {  // of a linear layer
            tensor.shape.resize(4, 1);
            tensor.strides.resize(4, 0);
        }
        if (tensor.shape != want) refuse("weight", "has shape " + shape_text(tensors_[place].shape), shape_text(want));
        if (tensor.is_integer() && !integers)
            refuse("weight", std::string("is of type ") + stored_name(tensor.type), kRealTypes);
        return tensor;
    }

    // Scale and bias of the channels: ((x + bias) - mean) / sqrt(var + eps) * gamma + beta, times the factor and the
    // scale by channel (Ioffe & Szegedy, 2015). Empty: all ones, all zeros.
    std::pair<Values, Values> epilogue(const LayerPlaces& places) const {
        Values scale, shift = values(places.bias, "bias");
        const auto n = static_cast<std::size_t>(layer_.out_channels);
        if (places.batch_norm) {
            const BatchNormPlaces& norm = *places.batch_norm;
            const Values mean = values(norm.running_mean, "running_mean", layer_.out_channels);
            const Values variance = values(norm.running_var, "running_var", layer_.out_channels);
            const Values gamma = values(norm.weight, "batch norm's weight");
            const Values beta = values(norm.bias, "batch norm's bias");
            scale.resize(n);
            shift.resize(n, 0.0);
            for (std::size_t k = 0; k < n; ++k) {
                scale[k] = 1.0 / std::sqrt(variance[k] + norm.eps) * (gamma.empty() ? 1.0 : gamma[k]);
                shift[k] = (shift[k] - mean[k]) * scale[k] + (beta.empty() ? 0.0 : beta[k]);
            }
        }
        if (!places.channel_scale && places.factor == 1.0) return {scale, shift};
        const Values by_channel = values(places.channel_scale, "channel_scale");
        if (scale.empty()) scale.resize(n, 1.0);
        for (Values* const list : {&scale, &shift})
            for (std::size_t k = 0; k < list->size(); ++k)
                (*list)[k] *= (by_channel.empty() ? 1.0 : by_channel[k]) * places.factor;
        return {scale, shift};
    }

    [[noreturn]] void refuse(const std::string& what, const std::string& got, const std::string& want) const {
        throw std::invalid_argument(layer_.name + ": " + what + " " + got + ", want " + want);
    }

    void require_no_zeros(const Place& place) const {
        if (!place) return;
        for (const double zero : stored_values(tensors_[*place]))
            if (zero != 0.0)
                throw std::invalid_argument(layer_.name + ": its quantised weights have zero points, want 0");
    }

  private:
    const Layer& layer_;
    std::span<const StoredTensor> tensors_;
};

std::vector<float> floats(const Values& values) { return {values.begin(), values.end()}; }

WeightSource conv_source(const Layer& layer, const Reader& reader, const LayerPlaces& places) {
    WeightSource source;
    std::tie(source.scale, source.bias) = reader.epilogue(places);
    const std::vector<float> steps = floats(reader.values(places.weight_steps, "weight_steps"));
    const StoredTensor weight = reader.weight(*places.weight, places.weight_steps.has_value());
    reader.require_no_zeros(places.weight_zeros);
    if (weight.type == StoredType::fp32 && steps.empty()) {
        source.weight = static_cast<const float*>(weight.data);
        std::copy(weight.strides.begin(), weight.strides.end(), source.strides.begin());
    } else {
        source.stored = StoredWeights{weight, steps};
    }
    if (layer.is_int8()) source.steps = steps;
    source.means = floats(reader.values(places.input_means, "input_means", layer.in_channels));
    source.lost = reader.values(places.weight_lost, "weight_lost");
    return source;
}

}  // namespace

void set_parameters(WeightSet& weights, const Spec& spec, std::span<const StoredTensor> tensors) {
    if (tensors.size() < spec.parameters)
        throw std::invalid_argument("parameters: got " + std::to_string(tensors.size()) + " tensors, want " +
                                    std::to_string(spec.parameters));
    for (std::size_t l = 0; l < spec.places.size(); ++l) {
        const Layer& layer = spec.program->layers()[l];
        const LayerPlaces& places = spec.places[l];
        const Reader reader(layer, tensors);
        if (places.slopes) weights.set_slopes(l, reader.slopes(*places.slopes));
        if (layer.kind == LayerKind::conv) {
            weights.set(l, conv_source(layer, reader, places));
        } else if (layer.kind == LayerKind::affine) {
            const auto [scale, bias] = reader.epilogue(places);
            weights.set_affine(l, scale, bias);
        } else if (layer.is_scaled()) {
            weights.set_affine(l, reader.values(places.weight, "weight"), reader.values(places.bias, "bias"));
        }
    }
}

}  // namespace resfuse
