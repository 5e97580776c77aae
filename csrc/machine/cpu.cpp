#include "machine/cpu.h"

#include <unistd.h>

#if defined(RESFUSE_X86)
#include <cpuid.h>
#include <sys/syscall.h>
#elif defined(RESFUSE_ARM64)
#include "machine/arm_features.h"
#endif

#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>

namespace resfuse {

namespace {

// The one of its family that has vectors of 512 bits.
bool is_zen4() {
#if defined(RESFUSE_X86)
    __builtin_cpu_init();
    return __builtin_cpu_is("amdfam19h") && __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

#if defined(RESFUSE_X86)
// GCC 12 does not know its name. Intel, Software Developer's Manual, vol. 2, CPUID: leaf 7, subleaf 1, EAX bit 4.
bool has_avx_vnni() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 4)) != 0;
}

// Its tiles, and products of bytes and of bf16 (leaf 7, EDX bits 24, 25 and 22). Linux keeps their eight KiB a thread
// only for processes that ask (Documentation/arch/x86/xstate.rst); it refuses where a signal's stack would be too small
// for them.
bool asks_for_amx() {
#if defined(__linux__)
    constexpr unsigned kTiles = 1u << 24, kBytes = 1u << 25, kBf16 = 1u << 22, kAll = kTiles | kBytes | kBf16;
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kAll) == kAll &&
           syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
}

bool has_amx() {
    static const bool has = asks_for_amx();
    return has;
}
#endif

}  // namespace

bool has_isa(Isa isa) {
#if defined(RESFUSE_X86)
    __builtin_cpu_init();
    switch (isa) {
        case Isa::generic:
            return true;
        case Isa::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
        case Isa::avx2_vnni:
            return has_isa(Isa::avx2) && has_avx_vnni();
        case Isa::avx512:
            return has_isa(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl");
        case Isa::avx512_vnni:
            return has_isa(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
        case Isa::avx512_bf16:
            return has_isa(Isa::avx512_vnni) && __builtin_cpu_supports("avx512bf16");
        case Isa::avx512_amx:
            return has_isa(Isa::avx512_bf16) && has_amx();
        case Isa::zen4:
            return has_isa(Isa::avx512_bf16) && is_zen4();
        default:
            return false;
    }
#elif defined(RESFUSE_ARM64)
    static const ArmFeatures features = arm_features();
    switch (isa) {
        case Isa::generic:
        case Isa::neon:
            return true;
        case Isa::neon_dotprod:
            return features.dotprod;
        case Isa::neon_i8mm:
            return features.dotprod && features.i8mm;
        case Isa::neon_bf16:
            return features.dotprod && features.i8mm && features.bf16;
        default:
            return false;
    }
#else
    return isa == Isa::generic;
#endif
}

// Zen 4 computes vectors of 512 bits in two halves.
double multiply_adds_per_cycle(int vector_floats) {
    static const bool in_halves = is_zen4();
    return vector_floats == 16 && in_halves ? 1.0 : 2.0;
}

// Intel's cores make several operations of one; measured on Emerald Rapids.
double bf16_dots_per_multiply_add() {
#if defined(RESFUSE_X86)
    __builtin_cpu_init();
    return __builtin_cpu_is("intel") ? 0.25 : 1.0;
#else
    return 1.0;
#endif
}

namespace {

std::size_t sysconf_size(int name, std::size_t fallback) {
    const long bytes = sysconf(name);
    return bytes > 0 ? static_cast<std::size_t>(bytes) : fallback;
}

// What the kernel says of the caches of the first core; 0 where it says nothing. Better than sysconf, which adds up the
// L3 of all of a processor's clusters.
std::size_t sysfs_size(int level) {
    for (int i = 0; i < 8; ++i) {
        const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(i) + "/";
        int of = 0;
        std::size_t size = 0;
        char unit = 0;
        if (!(std::ifstream(folder + "level") >> of) || of != level) continue;
        if (!(std::ifstream(folder + "size") >> size >> unit)) continue;
        return size << (unit == 'K' ? 10 : unit == 'M' ? 20 : 0);
    }
    return 0;
}

std::size_t cache_size(int level, int name, std::size_t fallback) {
    const std::size_t size = sysfs_size(level);
    return size > 0 ? size : sysconf_size(name, fallback);
}

CacheSizes read_cache_sizes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    return {cache_size(2, _SC_LEVEL2_CACHE_SIZE, 1u << 20), cache_size(3, _SC_LEVEL3_CACHE_SIZE, 8u << 20)};
#else
    return {1u << 20, 8u << 20};
#endif
}

}  // namespace

// Additions that wait for each other take a cycle each on every CPU of the last decades. The fastest of several runs:
// the others were interrupted, or the clock was not yet up.
double measure_clock() {
    constexpr int kRuns = 8, kSteps = 25'000, kUnroll = 10;
    using Clock = std::chrono::steady_clock;
    double best = 1.0;
    unsigned long x = 1;
    for (int run = 0; run < kRuns; ++run) {
        const auto start = Clock::now();
        for (int i = 0; i < kSteps; ++i)
#pragma GCC unroll 10
            for (int j = 0; j < kUnroll; ++j) {
                x += static_cast<unsigned long>(i);
                asm volatile("" : "+r"(x));
            }
        best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
    }
    return kSteps * kUnroll / best;
}

const CacheSizes& cache_sizes() {
    static const CacheSizes sizes = read_cache_sizes();
    return sizes;
}

}  // namespace resfuse
