#include "machine/dispatch.h"

#include <array>
#include <cstdlib>
#include <stdexcept>

namespace resfuse {

namespace {
constexpr std::array<const char*, 6> kNames = {"generic", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "zen4"};
}

const char* isa_name(Isa isa) { return kNames[static_cast<std::size_t>(isa)]; }

Isa parse_isa(const std::string& name) {
    for (std::size_t i = 0; i < kNames.size(); ++i) {
        if (name != kNames[i]) continue;
        const Isa isa = static_cast<Isa>(i);
        if (isa > detect_isa())
            throw std::invalid_argument("RESFUSE_ISA=" + name + ": this CPU has only " + isa_name(detect_isa()) +
                                        " and what is below it");
        return isa;
    }
    throw std::invalid_argument("RESFUSE_ISA=" + name +
                                ": want one of generic, avx2, avx512, avx512_vnni, avx512_bf16, zen4");
}

Isa active_isa() {
    static const Isa isa = [] {
        const char* forced = std::getenv("RESFUSE_ISA");
        return forced && *forced ? parse_isa(forced) : detect_isa();
    }();
    return isa;
}

namespace {

// Made at the first use: a level's own code makes its table, and must not run on a CPU without it.
template <KernelTable (*make)()>
const KernelTable& table_of() {
    static const KernelTable table = make();
    return table;
}

}  // namespace

const KernelTable& kernels_of(Isa isa) {
    switch (isa) {
#if defined(RESFUSE_X86)
        case Isa::zen4:
            return table_of<zen4_kernels>();
        case Isa::avx512_bf16:  // adds no kernel yet
        case Isa::avx512_vnni:
            return table_of<avx512_vnni_kernels>();
        case Isa::avx512:
            return table_of<avx512_kernels>();
        case Isa::avx2:
            return table_of<avx2_kernels>();
#endif
        default:
            return table_of<generic_kernels>();
    }
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (int i = 0; i <= static_cast<int>(detect_isa()); ++i) names.emplace_back(kNames[static_cast<std::size_t>(i)]);
    return names;
}

namespace {

constexpr const char* kTypeNames[kDTypes] = {"fp32", "fp64", "bf16", "fp16", "u8"};

}  // namespace

const char* type_name(DType type) { return kTypeNames[static_cast<std::size_t>(type)]; }

DType parse_type(const std::string& name) {
    std::string names;
    for (int t = 0; t < kDTypes; ++t) {
        if (name == kTypeNames[t]) return static_cast<DType>(t);
        names += (names.empty() ? "'" : ", '") + std::string(kTypeNames[t]) + "'";
    }
    throw std::invalid_argument("dtype: got '" + name + "', want one of " + names);
}

}  // namespace resfuse
