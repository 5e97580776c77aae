// Arguments of weights' gradients.
#pragma once

#include "kernels/types.h"

namespace resfuse {

// c[i][j] (+)= sum over steps t of a[t * lda + i] * b[t * ldb + j], for tile_cols columns of `panels` panels of b.
struct OuterProductArgs {
    const float* a;
    index_t lda;
    const float* b;
    index_t b_panel, ldb;  // floats between panels and steps
    float* c;
    index_t c_panel, ldc;
    index_t rows, panels, steps;
    bool accumulate;
    // Read next: fetched meanwhile.
    const float *next_a = nullptr, *next_b = nullptr;
    index_t next_a_floats = 0, next_b_floats = 0;
};

}  // namespace resfuse
