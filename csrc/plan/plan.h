// A Plan: everything about running a Program that one input size fixes. Extents, algorithms, the depth-first schedule,
// and where each buffer lies in the workspace.
#pragma once

#include <memory>
#include <vector>

#include "plan/algorithm.h"

namespace resfuse {

struct InputShape {
    index_t height, width;
    bool dense;  // NHWC in memory, channels contiguous, images one after the other
};

// Consecutive steps that each wave of images passes through before the next wave starts.
struct Segment {
    std::size_t first_step, last_step;  // inclusive
    index_t images;                     // per wave
};

// Where a buffer lives. External buffers are the caller's tensors.
struct Placement {
    int external_input = -1;
    int external_output = -1;
    bool whole_batch = false;  // crosses segments, so it holds all images
    std::size_t offset = 0;    // floats into the workspace
    index_t image_floats = 0;
    index_t pixel_floats = 0;
};

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
    Extent extent(int buffer) const { return extents_[static_cast<std::size_t>(buffer)]; }
    std::size_t workspace_bytes() const { return workspace_floats_ * sizeof(float); }
    // The layer whose step pools as well, for a pooling layer that costs no step of its own; else -1.
    int pooled_in(std::size_t layer) const;
    // Images per wave of the segment that computes a layer.
    index_t wave_images(std::size_t layer) const;

    // What the executor needs.
    const std::vector<std::unique_ptr<Step>>& steps() const { return steps_; }
    const std::vector<Placement>& placements() const { return placements_; }
    std::size_t workspace_floats() const { return workspace_floats_; }
    std::size_t thread_scratch_offset() const { return thread_scratch_offset_; }
    std::size_t thread_scratch_floats() const { return thread_scratch_floats_; }
    std::size_t shared_scratch_offset(std::size_t step) const { return shared_scratch_offsets_[step]; }
    index_t channels(std::size_t buffer) const { return channels_[buffer]; }
    const float* zeros() const { return zeros_.data(); }

  private:
    void infer_extents(const std::vector<InputShape>& inputs);
    void choose_algorithms();
    void place_inputs(const std::vector<InputShape>& inputs);
    void place_outputs(const std::vector<std::size_t>& planes);
    int add_external(int like, const Placement& placement);
    void make_segments();
    void find_pooled();
    void space_pixels();
    void make_steps();
    std::unique_ptr<Step> make_step(const StepContext& context, std::size_t layer) const;
    void add_planes();
    bool overwrites_residual(const Layer& layer) const;
    void place_buffers();
    std::size_t step_of_layer(std::size_t layer) const { return layer + layouts_.size(); }
    std::size_t segment_of(std::size_t step) const;

    struct Layout {
        int from, to;
    };

    std::shared_ptr<const Program> program_;
    index_t batch_;
    int threads_;
    std::vector<Layer> layers_;
    std::vector<Extent> extents_;
    std::vector<index_t> channels_;
    std::vector<bool> dense_;
    std::vector<bool> input_dense_;                 // per input
    std::vector<index_t> pixels_;                   // floats between a dense buffer's pixels
    std::vector<const ConvAlgorithm*> algorithms_;  // null: no convolution
    double stream_bytes_per_cycle_ = 0.0;
    std::vector<const Layer*> pooled_;  // per layer: the pooling layer that alone reads its output, or null
    std::vector<Layout> layouts_;       // steps 0 .. layouts - 1; layers follow
    std::vector<bool> in_planes_;       // per output
    std::vector<Layout> planes_;        // outputs that a layer's step copies in addition
    std::vector<std::unique_ptr<Step>> steps_;
    std::vector<Segment> segments_;
    std::vector<Placement> placements_;
    std::vector<float> zeros_;
    std::size_t workspace_floats_ = 0;
    std::size_t thread_scratch_offset_ = 0, thread_scratch_floats_ = 0;
    std::vector<std::size_t> shared_scratch_offsets_;  // per step
};

}  // namespace resfuse
