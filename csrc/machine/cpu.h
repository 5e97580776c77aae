// What this machine is: the instruction sets it has and the sizes of its caches.
#pragma once

#include <cstddef>

namespace resfuse {

// Levels of instruction sets, from slow to fast. Most contain those before them; avx2_vnni (VNNI on vectors of 256
// bits, of CPUs without AVX-512) is missing from many CPUs that have what follows it. avx512_amx: products of matrices
// of bytes and of bf16. zen4: AVX-512 on cores that have adders beside their multipliers. Of aarch64: NEON, which all
// have; sdot; products of matrices of bytes; and of bf16.
enum class Isa : int {
    generic,
    avx2,
    avx2_vnni,
    avx512,
    avx512_vnni,
    avx512_bf16,
    avx512_amx,
    zen4,
    neon,
    neon_dotprod,
    neon_i8mm,
    neon_bf16
};

// Whether this CPU has a level.
bool has_isa(Isa isa);

struct CacheSizes {
    std::size_t l2;  // bytes per core
    std::size_t l3;  // bytes, shared by the cores of one cluster
};

const CacheSizes& cache_sizes();

// Fused multiply-adds of whole vectors that a core starts in a cycle.
double multiply_adds_per_cycle(int vector_floats);

// Dot products of bf16 pairs (AVX512-BF16) in the time of a vector's fp32 multiply-add.
double bf16_dots_per_multiply_add();

// Cycles per second of the calling core while it works, measured (about a millisecond).
double measure_clock();

}  // namespace resfuse
