// A Plan: everything about running a Program that one input size fixes. Its jobs stand in files of their own: sizes
// (sizes.h), algorithms (algorithm.h), views (views.h), segments (segments.h), placement (placement.h).
#pragma once

#include <memory>
#include <vector>

#include "plan/algorithm.h"
#include "plan/placement.h"

namespace resfuse {

class Plan {
  public:
    // `planes` are the outputs that come in contiguous NCHW memory; all others come in dense NHWC memory. Throws
    // std::invalid_argument where the extents do not fit the program.
    Plan(std::shared_ptr<const Program> program, index_t batch, const std::vector<InputShape>& inputs, int threads,
         const std::vector<std::size_t>& planes = {});

    const Program& program() const { return *program_; }
    index_t batch() const { return batch_; }
    int threads() const { return threads_; }
    const std::vector<Layer>& layers() const { return layers_; }  // the program's, paddings resolved
    const std::vector<const ConvAlgorithm*>& algorithms() const { return algorithms_; }
    double stream_bytes_per_cycle() const { return stream_bytes_per_cycle_; }  // that the choice assumed
    const std::vector<Segment>& segments() const { return segments_; }
    bool input_dense(std::size_t input) const { return input_dense_[input]; }
    bool in_planes(std::size_t output) const { return in_planes_[output]; }
    Extent extent(int buffer) const { return buffers_[static_cast<std::size_t>(buffer)].extent; }
    // The layer whose step computes this one as well, for a layer that costs no step of its own; else -1.
    int computed_in(std::size_t layer) const;
    // Images per wave of the segment that computes a layer.
    index_t wave_images(std::size_t layer) const;

    // What the executor needs.
    const std::vector<std::unique_ptr<Step>>& steps() const { return steps_; }
    const std::vector<PlannedBuffer>& buffers() const { return buffers_; }
    const std::vector<Lifetime>& lifetimes() const { return lifetimes_; }
    const Workspace& workspace() const { return workspace_; }
    const float* zeros() const { return zeros_.data(); }

  private:
    void choose_algorithms();
    bool reads_any_strides(std::size_t layer) const;
    void place_inputs(const std::vector<InputShape>& inputs);
    void place_outputs(const std::vector<std::size_t>& planes);
    int add_external(int like, int input, int output);
    void space_pixels();
    std::vector<LayerTraffic> traffic() const;
    void find_readers();
    void find_joined();
    void find_pooled();
    int pooled_in(std::size_t layer) const;
    // The layer before that a layer's step computes as well, or -1.
    int joined_by(std::size_t layer) const;
    StepContext context_of(std::size_t step) const;
    void make_steps();
    std::unique_ptr<Step> make_step(const StepContext& context, std::size_t layer) const;
    void add_planes();
    void find_lifetimes();
    std::size_t step_of_layer(std::size_t layer) const { return layer + layouts_.size(); }
    PlannedBuffer& buffer(int number) { return buffers_[static_cast<std::size_t>(number)]; }

    struct Layout {
        int from, to;
    };

    std::shared_ptr<const Program> program_;
    index_t batch_;
    int threads_;
    std::vector<Layer> layers_;
    std::vector<PlannedBuffer> buffers_;
    std::vector<bool> input_dense_;                 // per input
    std::vector<const ConvAlgorithm*> algorithms_;  // null: no convolution
    double stream_bytes_per_cycle_ = 0.0;
    std::vector<int> readers_;          // per buffer; the caller is one of an output
    std::vector<int> joined_to_;        // per layer: the one behind it whose step computes it, or -1
    std::vector<const Layer*> pooled_;  // per layer: the pooling layer that alone reads its output, or null
    std::vector<Layout> layouts_;       // steps 0 .. layouts - 1; layers follow
    std::vector<bool> in_planes_;       // per output
    std::vector<Layout> planes_;        // outputs that a layer's step copies in addition
    std::vector<std::unique_ptr<Step>> steps_;
    std::vector<Segment> segments_;
    std::vector<Lifetime> lifetimes_;  // per buffer
    Workspace workspace_;
    std::vector<float> zeros_;
};

}  // namespace resfuse
