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

std::vector<std::string> available_isas();

}  // namespace resfuse
