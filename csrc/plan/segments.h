// A job of a plan: how many images go through which layers together.
#pragma once

#include <cstddef>
#include <vector>

#include "program/program.h"

namespace resfuse {

// Consecutive steps that each wave of images passes through before the next wave starts.
struct Segment {
    std::size_t first_step, last_step;  // inclusive
    index_t images;                     // per wave
};

// What a layer moves.
struct LayerTraffic {
    Extent out;
    std::size_t weights;      // bytes of them
    std::size_t activations;  // bytes that it reads and writes, per image
};

// So many that their activations stay in cache, given the bytes of packed weights that each pass streams and of
// activations per image.
index_t images_per_wave(std::size_t weight_bytes, std::size_t activation_bytes, index_t batch, int threads);

// Layers of one output extent (a stage) go depth first together: as many images a wave as keep its activations in
// cache, or many where its weights are too large to be streamed once per few images. Layers of one pixel that lead to
// a gate in the stage belong to it. The layers' steps follow `steps_before` others, which join the first segment.
std::vector<Segment> make_segments(const std::vector<LayerTraffic>& layers, std::size_t steps_before, index_t batch,
                                   int threads);

std::size_t segment_of(const std::vector<Segment>& segments, std::size_t step);

}  // namespace resfuse
