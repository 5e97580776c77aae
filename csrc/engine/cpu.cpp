#include "engine/cpu.h"

#include <unistd.h>

namespace resfuse {

Isa detect_isa() {
#if defined(RESFUSE_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::avx512_bf16;
    if (avx512) return Isa::avx512;
    if (avx2) return Isa::avx2;
#endif
    return Isa::generic;
}

namespace {

std::size_t cache_size(int name, std::size_t fallback) {
    const long bytes = sysconf(name);
    return bytes > 0 ? static_cast<std::size_t>(bytes) : fallback;
}

CacheSizes read_cache_sizes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    return {cache_size(_SC_LEVEL2_CACHE_SIZE, 1u << 20), cache_size(_SC_LEVEL3_CACHE_SIZE, 8u << 20)};
#else
    return {1u << 20, 8u << 20};
#endif
}

}  // namespace

const CacheSizes& cache_sizes() {
    static const CacheSizes sizes = read_cache_sizes();
    return sizes;
}

}  // namespace resfuse
