// How many images go through a run of layers together.
#pragma once

#include <cstddef>

#include "kernels/table.h"

namespace resfuse {

// So many that their activations stay in cache, given the bytes of packed weights that each pass streams and of
// activations per image.
index_t images_per_wave(std::size_t weight_bytes, std::size_t activation_bytes, index_t batch, int threads);

}  // namespace resfuse
