// Rows of floats become columns, square by square in registers.
#pragma once

#include <cstdint>

#include "kernels/layout/args.h"
#include "kernels/simd/lanes.h"

namespace resfuse {
namespace {

inline void transpose_square(const TransposeArgs& g, index_t row, index_t col) {
    const index_t rows = g.rows - row, cols = g.cols - col;
    const float* const from = static_cast<const float*>(g.x) + row * g.pitch + col;
    float* const to = static_cast<float*>(g.y) + col * g.y_pitch + row;
    Vec square[kVectorFloats];
    if (rows >= kVectorFloats && cols >= kVectorFloats) {
#pragma GCC unroll 16
        for (int i = 0; i < kVectorFloats; ++i) square[i] = load(from + i * g.pitch);
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kVectorFloats; ++i) store(to + i * g.y_pitch, square[i]);
        return;
    }
    for (int i = 0; i < kVectorFloats; ++i) square[i] = i < rows ? load_first(from + i * g.pitch, cols) : zero();
    transpose(square);
    for (int i = 0; i < kVectorFloats && i < cols; ++i) store_first(to + i * g.y_pitch, square[i], rows);
}

// Of 16-bit elements, square by square in L1.
inline void transpose_halves(const TransposeArgs& g) {
    constexpr index_t kSide = 32;
    const auto* const x = static_cast<const std::uint16_t*>(g.x);
    auto* const y = static_cast<std::uint16_t*>(g.y);
    for (index_t col = 0; col < g.cols; col += kSide)
        for (index_t row = 0; row < g.rows; row += kSide)
            for (index_t c = col; c < g.cols && c < col + kSide; ++c)
                for (index_t r = row; r < g.rows && r < row + kSide; ++r) y[c * g.y_pitch + r] = x[r * g.pitch + c];
}

inline void transpose_floats(const TransposeArgs& g) {
    constexpr index_t kFewColumns = 4;  // of a square that would be empty for the most part
    if (g.cols <= kFewColumns) {
        const float* const x = static_cast<const float*>(g.x);
        float* const y = static_cast<float*>(g.y);
        for (index_t col = 0; col < g.cols; ++col)
            for (index_t row = 0; row < g.rows; ++row) y[col * g.y_pitch + row] = x[row * g.pitch + col];
        return;
    }
    // Some lines of each row of the result, one after the other: few pages are written at a time.
    constexpr index_t kRowsTogether = 64;
    for (index_t first = 0; first < g.rows; first += kRowsTogether) {
        const index_t end = g.rows - first < kRowsTogether ? g.rows : first + kRowsTogether;
        for (index_t col = 0; col < g.cols; col += kVectorFloats)
            for (index_t row = first; row < end; row += kVectorFloats) transpose_square(g, row, col);
    }
}

}  // namespace
}  // namespace resfuse
