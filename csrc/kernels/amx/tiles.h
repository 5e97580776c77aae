// Intel's AMX: eight registers of up to 16 rows of 64 bytes, and the instructions that multiply them. Written as
// assembly, since what they touch is no vector that the compiler knows; "memory" keeps its own loads and stores in
// order with theirs.
//
// Tiles 0 to 3 hold sums: of the first and the second tile of rows, each times two vectors of columns. 4 and 5 hold
// these rows, 6 and 7 weights.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace resfuse {
namespace {

constexpr index_t kMatrixRows = 16, kMatrixBytes = 64;  // of a register
constexpr int kFirstRows = 4, kFirstWeights = 6;

// Operand of LDTILECFG (Intel, Software Developer's Manual, vol. 2).
struct alignas(64) TileShapes {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {};
    std::uint8_t rows[16] = {};
};

// The registers, while it lives: some rows, of so many bytes of the reduction a step.
class TileRegisters {
  public:
    TileRegisters(index_t rows, index_t step_bytes) {
        TileShapes shapes;
        for (int tile = 0; tile < kFirstWeights; ++tile) {
            shapes.rows[tile] = static_cast<std::uint8_t>(rows);
            shapes.bytes[tile] = static_cast<std::uint16_t>(tile < kFirstRows ? kMatrixBytes : step_bytes);
        }
        for (int tile = kFirstWeights; tile < kFirstWeights + 2; ++tile) {
            shapes.rows[tile] = static_cast<std::uint8_t>(step_bytes / 4);
            shapes.bytes[tile] = kMatrixBytes;
        }
        asm volatile("ldtilecfg %0" ::"m"(shapes));
    }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;
    ~TileRegisters() { asm volatile("tilerelease"); }
};

template <int Tile>
[[gnu::always_inline]] inline void load_tile(const void* first, index_t pitch_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(first), "r"(pitch_bytes), "i"(Tile) : "memory");
}
template <int Tile>
[[gnu::always_inline]] inline void clear_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}
template <int Tile>
[[gnu::always_inline]] inline void store_tile(void* first, index_t pitch_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(first), "r"(pitch_bytes), "i"(Tile) : "memory");
}

// Units of four bytes, u8 times s8, summed up in 32 bits.
struct MatrixBytes {
    using Operand = std::uint8_t;
    template <int Sums, int Rows, int Weights>
    [[gnu::always_inline]] static void multiply() {
        asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Rows), "i"(Weights));
    }
};

// Units of two bf16 numbers, summed up in fp32.
struct MatrixBf16 {
    using Operand = std::uint16_t;
    template <int Sums, int Rows, int Weights>
    [[gnu::always_inline]] static void multiply() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Rows), "i"(Weights));
    }
};

}  // namespace
}  // namespace resfuse
