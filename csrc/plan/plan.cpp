#include "plan/plan.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "memory/arena.h"
#include "plan/segments.h"

namespace resfuse {

Plan::Plan(std::shared_ptr<const Program> program, index_t batch, const std::vector<InputShape>& inputs, int threads,
           const std::vector<std::size_t>& planes)
    : program_(std::move(program)), batch_(batch), threads_(threads) {
    program_->freeze();
    if (batch < 1) throw std::invalid_argument("batch: got " + std::to_string(batch) + ", want at least 1");
    if (threads < 1) throw std::invalid_argument("threads: got " + std::to_string(threads) + ", want at least 1");
    if (inputs.size() != program_->inputs().size())
        throw std::invalid_argument("inputs: got " + std::to_string(inputs.size()) + " tensors, want " +
                                    std::to_string(program_->inputs().size()));
    infer_extents(inputs);
    choose_algorithms();
    place_inputs(inputs);
    place_outputs(planes);
    space_pixels();
    make_segments();
    find_pooled();
    make_steps();
    add_planes();
    place_buffers();
    zeros_.assign(static_cast<std::size_t>(*std::max_element(channels_.begin(), channels_.end())), 0.0f);
}

void Plan::infer_extents(const std::vector<InputShape>& inputs) {
    for (int b = 0; b < program_->buffers(); ++b) channels_.push_back(program_->channels(b));
    extents_.resize(channels_.size(), {0, 0});
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        if (inputs[i].height < 1 || inputs[i].width < 1)
            throw std::invalid_argument("input " + std::to_string(i) + ": an image of " +
                                        std::to_string(inputs[i].height) + " x " + std::to_string(inputs[i].width) +
                                        " has no pixels");
        require_addressable({batch_, program_->channels(program_->inputs()[i]), inputs[i].height, inputs[i].width},
                            "input " + std::to_string(i));
        extents_[static_cast<std::size_t>(program_->inputs()[i])] = {inputs[i].height, inputs[i].width};
    }
    layers_ = program_->layers();
    for (Layer& layer : layers_) {
        const Extent in = extents_[static_cast<std::size_t>(layer.input)];
        Window& window = layer.window = resolve_padding(layer.window, in);
        const index_t padded_h = in.h + window.pad_top + window.pad_bottom;
        const index_t padded_w = in.w + window.pad_left + window.pad_right;
        require_addressable({batch_, layer.in_channels, padded_h, padded_w}, layer.name + ": padded input");
        // A longer stride leads nowhere else, and a band of one would be too long for an index.
        window.stride_h = std::min(window.stride_h, padded_h);
        window.stride_w = std::min(window.stride_w, padded_w);
        const Extent out =
            layer.kind == LayerKind::global_avg_pool ? Extent{1, 1} : window_extent(layer.window, in, layer.name);
        if (layer.gate >= 0) {
            const Extent gate = extents_[static_cast<std::size_t>(layer.gate)];
            if (gate.h != 1 || gate.w != 1)
                throw std::invalid_argument(layer.name + ": the gate is " + std::to_string(gate.h) + " x " +
                                            std::to_string(gate.w) + ", want 1 x 1");
        }
        if (layer.residual >= 0) {
            const Extent residual = extents_[static_cast<std::size_t>(layer.residual)];
            if (residual.h != out.h || residual.w != out.w)
                throw std::invalid_argument(layer.name + ": the residual is " + std::to_string(residual.h) + " x " +
                                            std::to_string(residual.w) + ", want " + std::to_string(out.h) + " x " +
                                            std::to_string(out.w));
        }
        require_addressable({batch_, layer.out_channels, out.h, out.w}, layer.name + ": output");
        extents_[static_cast<std::size_t>(layer.output)] = out;
    }
}

void Plan::choose_algorithms() {
    const KernelTable& kernels = program_->kernels();
    stream_bytes_per_cycle_ = resfuse::stream_bytes_per_cycle(layers_, extents_, kernels);
    for (const Layer& layer : layers_)
        algorithms_.push_back(layer.kind == LayerKind::conv
                                  ? &choose_algorithm({layer, extents_[static_cast<std::size_t>(layer.output)], batch_,
                                                       stream_bytes_per_cycle_, kernels})
                                  : nullptr);
}

// A direct convolution reads any strides while it fills its band; every other reader wants dense NHWC. The input's own
// buffer number then names the dense copy and a new one the caller's tensor.
void Plan::place_inputs(const std::vector<InputShape>& inputs) {
    placements_.resize(channels_.size());
    dense_.assign(channels_.size(), true);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        const int buffer = program_->inputs()[i];
        input_dense_.push_back(inputs[i].dense);
        bool needs_dense = false;
        for (std::size_t l = 0; l < layers_.size(); ++l) {
            const Layer& layer = layers_[l];
            needs_dense |= layer.residual == buffer || layer.gate == buffer;
            needs_dense |=
                layer.input == buffer && (layer.kind != LayerKind::conv || !algorithms_[l]->reads_any_strides());
        }
        if (inputs[i].dense || !needs_dense) {
            placements_[static_cast<std::size_t>(buffer)].external_input = static_cast<int>(i);
            dense_[static_cast<std::size_t>(buffer)] = inputs[i].dense;
            continue;
        }
        layouts_.push_back({add_external(buffer, {.external_input = static_cast<int>(i)}), buffer});
    }
}

// Of an output in planes, the buffer's own number names ours in NHWC, which later layers may read as well.
void Plan::place_outputs(const std::vector<std::size_t>& planes) {
    in_planes_.assign(program_->outputs().size(), false);
    for (const std::size_t o : planes) {
        if (o >= in_planes_.size())
            throw std::invalid_argument("planes: got output " + std::to_string(o) + ", want less than " +
                                        std::to_string(in_planes_.size()));
        in_planes_[o] = true;
    }
    for (std::size_t o = 0; o < in_planes_.size(); ++o) {
        const int buffer = program_->outputs()[o], number = static_cast<int>(o);
        if (in_planes_[o]) {
            planes_.push_back({buffer, add_external(buffer, {.external_output = number})});
        } else {
            placements_[static_cast<std::size_t>(buffer)].external_output = number;
        }
    }
}

// A number for a tensor of the caller's that is like another buffer.
int Plan::add_external(int like, const Placement& placement) {
    channels_.push_back(channels_[static_cast<std::size_t>(like)]);
    extents_.push_back(extents_[static_cast<std::size_t>(like)]);
    dense_.push_back(false);
    placements_.push_back(placement);
    return static_cast<int>(channels_.size()) - 1;
}

// Of our own buffers, where every step that reads or writes one honours the distance.
void Plan::space_pixels() {
    pixels_ = channels_;
    std::vector<bool> ours(channels_.size(), false);
    for (std::size_t l = 0; l < layers_.size(); ++l)
        ours[static_cast<std::size_t>(layers_[l].output)] =
            layers_[l].kind == LayerKind::global_avg_pool || layers_[l].kind == LayerKind::conv;
    for (std::size_t l = 0; l < layers_.size(); ++l)
        if (layers_[l].kind == LayerKind::affine)
            for (const int buffer : {layers_[l].input, layers_[l].residual, layers_[l].gate})
                if (buffer >= 0) ours[static_cast<std::size_t>(buffer)] = false;
    for (std::size_t b = 0; b < channels_.size(); ++b) {
        Placement& place = placements_[b];
        const bool external = place.external_input >= 0 || place.external_output >= 0;
        if (ours[b] && !external) pixels_[b] = spaced(channels_[b]);
        place.pixel_floats = pixels_[b];
        place.image_floats = extents_[b].h * extents_[b].w * pixels_[b];
    }
}

// Layers of one output extent (a stage) go depth first together: as many images a wave as keep its activations in
// cache, or many where its weights are too large to be streamed once per few images. Layers of one pixel that lead to
// a gate in the stage belong to it.
void Plan::make_segments() {
    const std::vector<Layer>& layers = layers_;
    const auto out_extent = [&](std::size_t l) { return extents_[static_cast<std::size_t>(layers[l].output)]; };
    const auto same = [&](std::size_t l, Extent extent) {
        return out_extent(l).h == extent.h && out_extent(l).w == extent.w;
    };
    const auto in_stage = [&](std::size_t l, Extent extent) {
        while (l < layers.size() && same(l, {1, 1}) && !same(l, extent)) ++l;
        return l < layers.size() && same(l, extent);
    };
    for (std::size_t first = 0; first < layers.size();) {
        std::size_t last = first, weights = 0, activations = 0;
        const Extent extent = out_extent(first);
        while (last < layers.size() && in_stage(last, extent)) {
            const Layer& layer = layers[last];
            index_t floats = placements_[static_cast<std::size_t>(layer.input)].image_floats +
                             placements_[static_cast<std::size_t>(layer.output)].image_floats;
            if (layer.residual >= 0) floats += placements_[static_cast<std::size_t>(layer.residual)].image_floats;
            activations = std::max(activations, static_cast<std::size_t>(floats) * sizeof(float));
            if (layer.kind == LayerKind::conv)
                weights =
                    std::max(weights, algorithms_[last]->packed_floats(layer, program_->kernels()) * sizeof(float));
            ++last;
        }
        const index_t images = images_per_wave(weights, activations, batch_, threads_);
        if (!segments_.empty() && segments_.back().images == images) {
            segments_.back().last_step = step_of_layer(last - 1);
        } else {
            segments_.push_back({segments_.empty() ? 0 : step_of_layer(first), step_of_layer(last - 1), images});
        }
        first = last;
    }
}

std::size_t Plan::segment_of(std::size_t step) const {
    std::size_t s = 0;
    while (segments_[s].last_step < step) ++s;
    return s;
}

index_t Plan::wave_images(std::size_t layer) const { return segments_[segment_of(step_of_layer(layer))].images; }

void Plan::find_pooled() {
    std::vector<int> readers(channels_.size(), 0);
    for (const Layer& layer : layers_) {
        ++readers[static_cast<std::size_t>(layer.input)];
        for (const int buffer : {layer.residual, layer.gate})
            if (buffer >= 0) ++readers[static_cast<std::size_t>(buffer)];
    }
    for (const int output : program_->outputs()) ++readers[static_cast<std::size_t>(output)];
    pooled_.assign(layers_.size(), nullptr);
    for (const Layer& pool : layers_) {
        const bool pools = pool.kind == LayerKind::max_pool || pool.kind == LayerKind::global_avg_pool;
        if (!pools || readers[static_cast<std::size_t>(pool.input)] != 1) continue;
        for (std::size_t l = 0; l < layers_.size(); ++l)
            if (layers_[l].kind == LayerKind::conv && layers_[l].output == pool.input) pooled_[l] = &pool;
    }
}

int Plan::pooled_in(std::size_t layer) const {
    for (std::size_t l = 0; l < layer; ++l)
        if (pooled_[l] == &layers_[layer] && steps_[step_of_layer(l)]->pools()) return static_cast<int>(l);
    return -1;
}

void Plan::make_steps() {
    for (std::size_t s = 0; s < layouts_.size() + layers_.size(); ++s) {
        const StepContext context{
            *program_, layers_, extents_, dense_, pixels_, pooled_, segments_[segment_of(s)].images, threads_};
        if (s < layouts_.size()) {
            steps_.push_back(make_layout_step(context, layouts_[s].from, layouts_[s].to));
            continue;
        }
        steps_.push_back(make_step(context, s - layouts_.size()));
    }
}

std::unique_ptr<Step> Plan::make_step(const StepContext& context, std::size_t l) const {
    const Layer& layer = layers_[l];
    if (pooled_in(l) >= 0) return make_fused_away_step();
    if (layer.kind == LayerKind::affine) return make_affine_step(context, l);
    if (layer.kind == LayerKind::max_pool || layer.kind == LayerKind::avg_pool) return make_pool_step(context, l);
    if (layer.kind == LayerKind::global_avg_pool) return make_global_avg_pool_step(context, l);
    return algorithms_[l]->make_step(context, l);
}

// To the steps that write these outputs.
void Plan::add_planes() {
    for (const Layout& planes : planes_)
        for (std::size_t l = 0; l < layers_.size(); ++l) {
            if (layers_[l].output != planes.from) continue;
            const int pooling = pooled_in(l);
            const std::size_t step = step_of_layer(pooling >= 0 ? static_cast<std::size_t>(pooling) : l);
            const StepContext context{
                *program_, layers_, extents_, dense_, pixels_, pooled_, segments_[segment_of(step)].images, threads_};
            steps_[step] = make_planes_step(context, std::move(steps_[step]), planes.from, planes.to);
        }
}

// Whether a sum may take its residual's place: less memory, and lines that are in cache already. Every step reads an
// element of the residual before it writes the same element of its output, and no other.
bool Plan::overwrites_residual(const Layer& layer) const {
    const Placement& from = placements_[static_cast<std::size_t>(layer.residual)];
    const Placement& to = placements_[static_cast<std::size_t>(layer.output)];
    return layer.residual != layer.input && layer.residual != layer.gate && from.whole_batch == to.whole_batch &&
           from.image_floats == to.image_floats && from.pixel_floats == to.pixel_floats;
}

void Plan::place_buffers() {
    const std::size_t none = steps_.size();
    std::vector<std::size_t> defined(channels_.size(), none), last_use(channels_.size(), 0);
    const auto touch = [&](int buffer, std::size_t step) {
        const std::size_t b = static_cast<std::size_t>(buffer);
        defined[b] = std::min(defined[b], step);
        last_use[b] = std::max(last_use[b], step);
    };
    for (std::size_t s = 0; s < layouts_.size(); ++s) touch(layouts_[s].to, s);
    for (std::size_t l = 0; l < layers_.size(); ++l) {
        const Layer& layer = layers_[l];
        if (const int pooling = pooled_in(l); pooling >= 0) {
            touch(layer.output, step_of_layer(static_cast<std::size_t>(pooling)));
            continue;
        }
        if (!steps_[step_of_layer(l)]->pools()) touch(layer.output, step_of_layer(l));
        touch(layer.input, step_of_layer(l));
        for (const int buffer : {layer.residual, layer.gate})
            if (buffer >= 0) touch(buffer, step_of_layer(l));
    }

    const auto placed = [&](std::size_t b) {
        return placements_[b].external_input < 0 && placements_[b].external_output < 0 && defined[b] != none;
    };
    for (std::size_t b = 0; b < channels_.size(); ++b)
        if (placed(b)) placements_[b].whole_batch = segment_of(defined[b]) != segment_of(last_use[b]);

    // The buffer whose place another one takes: a sum's, of a residual that nothing reads behind it.
    std::vector<std::size_t> home(channels_.size());
    std::iota(home.begin(), home.end(), std::size_t{0});
    for (std::size_t l = 0; l < layers_.size(); ++l) {
        if (layers_[l].residual < 0) continue;
        const std::size_t from = static_cast<std::size_t>(layers_[l].residual);
        const std::size_t to = static_cast<std::size_t>(layers_[l].output);
        if (placed(from) && placed(to) && last_use[from] == step_of_layer(l) && overwrites_residual(layers_[l]))
            home[to] = home[from];
    }

    std::vector<Interval> intervals;
    std::vector<std::size_t> interval_of(channels_.size(), none);
    for (std::size_t b = 0; b < channels_.size(); ++b) {
        if (!placed(b)) continue;
        const Placement& place = placements_[b];
        const Segment &from = segments_[segment_of(defined[b])], &to = segments_[segment_of(last_use[b])];
        // Segments of several waves pass their steps several times.
        const std::size_t first = from.images < batch_ && place.whole_batch ? from.first_step : defined[b];
        const std::size_t last = to.images < batch_ && place.whole_batch ? to.last_step : last_use[b];
        const index_t images = place.whole_batch ? batch_ : from.images;
        std::size_t& interval = interval_of[home[b]];
        if (interval == none) {
            interval = intervals.size();
            intervals.push_back({.first = first,
                                 .last = last,
                                 .floats = static_cast<std::size_t>(images * place.image_floats),
                                 .halves = true});
        } else {
            intervals[interval].first = std::min(intervals[interval].first, first);
            intervals[interval].last = std::max(intervals[interval].last, last);
        }
    }
    const std::size_t scratch = intervals.size();
    for (std::size_t s = 0; s < steps_.size(); ++s) {
        intervals.push_back({.first = s, .last = s, .floats = steps_[s]->shared_scratch});
        thread_scratch_floats_ = std::max(thread_scratch_floats_, steps_[s]->thread_scratch);
    }
    thread_scratch_offset_ = place_intervals(intervals);
    thread_scratch_floats_ = arena_round_up(thread_scratch_floats_);
    for (std::size_t s = 0; s < steps_.size(); ++s) shared_scratch_offsets_.push_back(intervals[scratch + s].offset);
    workspace_floats_ = thread_scratch_offset_ + thread_scratch_floats_ * static_cast<std::size_t>(threads_);

    for (std::size_t b = 0; b < channels_.size(); ++b)
        if (placed(b)) placements_[b].offset = intervals[interval_of[home[b]]].offset;
}

}  // namespace resfuse
