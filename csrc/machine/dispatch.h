// The one dispatch mechanism: an instruction-set level names a table of kernels.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.h"
#include "machine/cpu.h"

namespace resfuse {

const char* isa_name(Isa isa);

// Throws std::invalid_argument for an unknown name and for a level that this CPU does not have.
Isa parse_isa(const std::string& name);

// The level in use: RESFUSE_ISA if set, else the best that the CPU has. Read once.
Isa active_isa();

const KernelTable& kernels_of(Isa isa);

// Of feature maps of one element type.
inline const ElementKernels& kernels_of(const KernelTable& kernels, DType type) {
    return kernels.elements[static_cast<std::size_t>(type)];
}

// Whether programs may hold feature maps of a type at a level.
inline bool computes(const KernelTable& kernels, DType type) {
    return type == DType::u8 ? kernels.int8.gemm != nullptr : kernels_of(kernels, type).gemm != nullptr;
}

const char* type_name(DType type);
// Throws std::invalid_argument for an unknown name.
DType parse_type(const std::string& name);
inline std::size_t element_bytes(DType type) {
    return static_cast<std::size_t>(kElementBytes[static_cast<std::size_t>(type)]);
}

std::vector<std::string> available_isas();

}  // namespace resfuse
