#include "machine/dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <stdexcept>

namespace resfuse {

namespace {

// Made at the first use: a level's own code makes its table, and must not run on a CPU without it.
template <KernelTable (*make)()>
const KernelTable& table_of() {
    static const KernelTable table = make();
    return table;
}

#if defined(RESFUSE_X86)
KernelTable avx512_bf16_kernels_here() {
    KernelTable table = avx512_bf16_kernels();
    table.elements[static_cast<int>(DType::bf16)].pair_units.terms *= bf16_dots_per_multiply_add();
    return table;
}
#endif

struct Level {
    Isa isa;
    const char* name;
    const KernelTable& (*kernels)();
};

// As Isa is ordered, without the levels of other processors.
constexpr Level kLevels[] = {
    {Isa::generic, "generic", table_of<generic_kernels>},
#if defined(RESFUSE_X86)
    {Isa::avx2, "avx2", table_of<avx2_kernels>},
    {Isa::avx2_vnni, "avx2_vnni", table_of<avx2_vnni_kernels>},
    {Isa::avx512, "avx512", table_of<avx512_kernels>},
    {Isa::avx512_vnni, "avx512_vnni", table_of<avx512_vnni_kernels>},
    {Isa::avx512_bf16, "avx512_bf16", table_of<avx512_bf16_kernels_here>},
    {Isa::avx512_amx, "avx512_amx", table_of<avx512_amx_kernels>},
    {Isa::zen4, "zen4", table_of<zen4_kernels>},
#elif defined(RESFUSE_ARM64)
    {Isa::neon, "neon", table_of<neon_kernels>},
    {Isa::neon_dotprod, "neon_dotprod", table_of<neon_dotprod_kernels>},
    {Isa::neon_i8mm, "neon_i8mm", table_of<neon_i8mm_kernels>},
    {Isa::neon_bf16, "neon_bf16", table_of<neon_bf16_kernels>},
#endif
};

const Level& level_of(Isa isa) {
    return *std::find_if(std::begin(kLevels), std::end(kLevels), [&](const Level& level) { return level.isa == isa; });
}

std::string listed(const std::vector<std::string>& names) {
    std::string list;
    for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
    return list;
}

}  // namespace

const char* isa_name(Isa isa) { return level_of(isa).name; }

const KernelTable& kernels_of(Isa isa) { return level_of(isa).kernels(); }

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Level& level : kLevels)
        if (has_isa(level.isa)) names.emplace_back(level.name);
    return names;
}

Isa parse_isa(const std::string& name) {
    std::vector<std::string> known;
    for (const Level& level : kLevels) {
        known.emplace_back(level.name);
        if (name != level.name) continue;
        if (has_isa(level.isa)) return level.isa;
        throw std::invalid_argument("RESFUSE_ISA=" + name + ": this CPU has only " + listed(available_isas()));
    }
    throw std::invalid_argument("RESFUSE_ISA=" + name + ": want one of " + listed(known));
}

Isa active_isa() {
    static const Isa isa = [] {
        const char* forced = std::getenv("RESFUSE_ISA");
        return parse_isa(forced && *forced ? forced : available_isas().back());
    }();
    return isa;
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
