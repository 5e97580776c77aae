#include "plan/plan.h"

#include <algorithm>
#include <stdexcept>

#include "plan/sizes.h"
#include "plan/views.h"

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
    Sizes sizes = infer_sizes(*program_, batch_, inputs);
    layers_ = std::move(sizes.layers);
    buffers_ = std::move(sizes.buffers);
    choose_algorithms();
    place_inputs(inputs);
    place_outputs(planes);
    find_views(buffers_, layers_);
    space_pixels();
    find_readers();
    find_joined();
    segments_ = make_segments(traffic(), layouts_.size(), batch_, threads_);
    find_pooled();
    make_steps();
    add_planes();
    find_lifetimes();
    std::vector<StepScratch> scratch;
    for (const std::unique_ptr<Step>& step : steps_) scratch.push_back({step->thread_scratch, step->shared_scratch});
    workspace_ = place_buffers(buffers_, lifetimes_, layers_, step_of_layer(0), segments_, scratch, batch_, threads_);
    index_t widest = 0;
    for (const PlannedBuffer& b : buffers_) widest = std::max(widest, b.channels);
    zeros_.assign(static_cast<std::size_t>(widest), 0.0f);
}

void Plan::choose_algorithms() {
    const KernelTable& kernels = program_->kernels();
    stream_bytes_per_cycle_ = resfuse::stream_bytes_per_cycle(layers_, buffers_, kernels);
    for (const Layer& layer : layers_)
        algorithms_.push_back(layer.kind == LayerKind::conv ? &choose_algorithm({layer, extent(layer.output), batch_,
                                                                                 stream_bytes_per_cycle_, kernels})
                                                            : nullptr);
}

// A direct convolution reads any strides while it fills its band.
bool Plan::reads_any_strides(std::size_t layer) const {
    const LayerKind kind = layers_[layer].kind;
    if (kind == LayerKind::conv) return algorithms_[layer]->reads_any_strides();
    return kind == LayerKind::concat || kind == LayerKind::pad || kind == LayerKind::depth_to_space ||
           kind == LayerKind::channel_shuffle;
}

// Where a reader wants dense NHWC, the input's own buffer number names a dense copy and a new one the caller's tensor.
void Plan::place_inputs(const std::vector<InputShape>& inputs) {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        const int number = program_->inputs()[i];
        input_dense_.push_back(inputs[i].dense);
        bool needs_dense = false;
        for (std::size_t l = 0; l < layers_.size(); ++l) {
            const Layer& layer = layers_[l];
            needs_dense |= layer.residual == number || layer.gate == number || layer.product == number;
            needs_dense |= layer.input == number && !reads_any_strides(l);
        }
        if (inputs[i].dense || !needs_dense) {
            buffer(number).external_input = static_cast<int>(i);
            buffer(number).dense = inputs[i].dense;
        } else {
            const int external = add_external(number, static_cast<int>(i), -1);
            layouts_.push_back({external, number});
        }
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
        const int number = program_->outputs()[o], output = static_cast<int>(o);
        if (in_planes_[o]) {
            const int external = add_external(number, -1, output);
            planes_.push_back({number, external});
        } else {
            buffer(number).external_output = output;
        }
    }
}

// A number for a tensor of the caller's that is like another buffer.
int Plan::add_external(int like, int input, int output) {
    const PlannedBuffer& other = buffer(like);
    buffers_.push_back({.channels = other.channels,
                        .type = other.type,
                        .extent = other.extent,
                        .external_input = input,
                        .external_output = output,
                        .dense = false});
    return static_cast<int>(buffers_.size()) - 1;
}

void Plan::space_pixels() {
    for (PlannedBuffer& b : buffers_) b.pixel = b.is_external() ? b.channels : padded_pixel(b.channels, b.type);
    for (PlannedBuffer& b : buffers_)
        if (b.is_view()) b.pixel = buffer(b.view_of).pixel;
}

std::vector<LayerTraffic> Plan::traffic() const {
    const auto bytes = [&](int number) {
        if (number < 0) return std::size_t{0};
        const PlannedBuffer& b = buffers_[static_cast<std::size_t>(number)];
        return static_cast<std::size_t>(b.extent.h * b.extent.w * b.channels) * element_bytes(b.type);
    };
    std::vector<LayerTraffic> layers;
    for (std::size_t l = 0; l < layers_.size(); ++l) {
        const Layer& layer = layers_[l];
        // What lies between two layers of one step stays in a thread's scratch.
        const std::size_t read = joined_by(l) >= 0 ? 0 : bytes(layer.input);
        const std::size_t written = joined_to_[l] >= 0 ? 0 : bytes(layer.output);
        layers.push_back({.out = extent(layer.output),
                          .weights = algorithms_[l] ? algorithms_[l]->packed_bytes(layer, program_->kernels()) : 0,
                          .activations = read + written + bytes(layer.residual)});
    }
    return layers;
}

index_t Plan::wave_images(std::size_t layer) const {
    return segments_[segment_of(segments_, step_of_layer(layer))].images;
}

void Plan::find_readers() {
    readers_.assign(buffers_.size(), 0);
    for (const Layer& layer : layers_)
        for (const int number : layer.sources()) ++readers_[static_cast<std::size_t>(number)];
    for (const int output : program_->outputs()) ++readers_[static_cast<std::size_t>(output)];
}

// Layers that the step of the one behind them computes as well.
void Plan::find_joined() {
    joined_to_.assign(layers_.size(), -1);
    const StepContext context{*program_, layers_, buffers_, pooled_, batch_, threads_};
    for (std::size_t l = 0; l < layers_.size(); ++l) {
        if (readers_[static_cast<std::size_t>(layers_[l].output)] != 1 || joined_by(l) >= 0) continue;
        for (std::size_t d = l + 1; d < layers_.size(); ++d)
            if (layers_[d].input == layers_[l].output && algorithms_[d] &&
                algorithms_[d]->joins(context, l, algorithms_[l], d))
                joined_to_[l] = static_cast<int>(d);
    }
}

int Plan::joined_by(std::size_t layer) const {
    const auto found = std::find(joined_to_.begin(), joined_to_.end(), static_cast<int>(layer));
    return found == joined_to_.end() ? -1 : static_cast<int>(found - joined_to_.begin());
}

void Plan::find_pooled() {
    pooled_.assign(layers_.size(), nullptr);
    for (const Layer& pool : layers_) {
        const bool pools = pool.kind == LayerKind::max_pool || pool.kind == LayerKind::global_avg_pool;
        if (!pools || readers_[static_cast<std::size_t>(pool.input)] != 1) continue;
        for (std::size_t l = 0; l < layers_.size(); ++l)
            if (layers_[l].kind == LayerKind::conv && layers_[l].output == pool.input) pooled_[l] = &pool;
    }
}

int Plan::computed_in(std::size_t layer) const { return joined_to_[layer] >= 0 ? joined_to_[layer] : pooled_in(layer); }

int Plan::pooled_in(std::size_t layer) const {
    for (std::size_t l = 0; l < layer; ++l)
        if (const Step& step = *steps_[step_of_layer(l)];
            (pooled_[l] == &layers_[layer] && step.pools()) || step.gathers() == &layers_[layer])
            return static_cast<int>(l);
    return -1;
}

StepContext Plan::context_of(std::size_t step) const {
    return {*program_, layers_, buffers_, pooled_, segments_[segment_of(segments_, step)].images, threads_};
}

void Plan::make_steps() {
    for (std::size_t s = 0; s < layouts_.size(); ++s)
        steps_.push_back(make_layout_step(context_of(s), layouts_[s].from, layouts_[s].to));
    for (std::size_t l = 0; l < layers_.size(); ++l) steps_.push_back(make_step(context_of(step_of_layer(l)), l));
}

std::unique_ptr<Step> Plan::make_step(const StepContext& context, std::size_t l) const {
    const Layer& layer = layers_[l];
    if (computed_in(l) >= 0) return make_fused_away_step();
    if (const int before = joined_by(l); before >= 0)
        return algorithms_[l]->make_joined_step(context, static_cast<std::size_t>(before), l);
    if (layer.kind == LayerKind::affine) return make_affine_step(context, l);
    if (layer.kind == LayerKind::max_pool || layer.kind == LayerKind::avg_pool) return make_pool_step(context, l);
    if (layer.kind == LayerKind::global_avg_pool) return make_global_avg_pool_step(context, l);
    if (layer.kind == LayerKind::group_norm) return make_group_norm_step(context, l);
    if (layer.kind == LayerKind::layer_norm) return make_layer_norm_step(context, l);
    if (layer.kind == LayerKind::resize) return make_resize_step(context, l);
    if (layer.kind == LayerKind::depth_to_space) return make_depth_to_space_step(context, l);
    if (layer.kind == LayerKind::channel_shuffle) return make_channel_shuffle_step(context, l);
    if (layer.kind != LayerKind::conv) return make_move_step(context, l);
    return algorithms_[l]->make_step(context, l);
}

// To the steps that write these outputs.
void Plan::add_planes() {
    for (const Layout& planes : planes_)
        for (std::size_t l = 0; l < layers_.size(); ++l) {
            if (layers_[l].output != planes.from) continue;
            const int pooling = pooled_in(l);
            const std::size_t step = step_of_layer(pooling >= 0 ? static_cast<std::size_t>(pooling) : l);
            steps_[step] = make_planes_step(context_of(step), std::move(steps_[step]), planes.from, planes.to);
        }
}

void Plan::find_lifetimes() {
    lifetimes_.resize(buffers_.size());
    const auto touch = [&](int number, std::size_t step) {
        if (number >= 0) lifetimes_[static_cast<std::size_t>(number)].touch(step);
    };
    for (std::size_t s = 0; s < layouts_.size(); ++s) touch(layouts_[s].to, s);
    for (std::size_t l = 0; l < layers_.size(); ++l) {
        const Layer& layer = layers_[l];
        if (const int pooling = pooled_in(l); pooling >= 0) {
            touch(layer.output, step_of_layer(static_cast<std::size_t>(pooling)));
            continue;
        }
        // What lies between two layers of one step is in no buffer.
        const int in = joined_to_[l], before = joined_by(l);
        const std::size_t step = step_of_layer(in >= 0 ? static_cast<std::size_t>(in) : l);
        if (in < 0 && !steps_[step]->pools()) touch(layer.output, step);
        for (const int number : layer.sources())
            if (before < 0 || number != layers_[static_cast<std::size_t>(before)].output) touch(number, step);
    }
    for (std::size_t b = 0; b < buffers_.size(); ++b) {
        if (!buffers_[b].is_view() || !lifetimes_[b].is_used()) continue;
        touch(buffers_[b].view_of, lifetimes_[b].first);
        touch(buffers_[b].view_of, lifetimes_[b].last);
    }
}

}  // namespace resfuse
