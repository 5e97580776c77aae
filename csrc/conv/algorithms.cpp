// The list of the algorithms for convolutions.
#include <array>

#include "conv/direct/direct.h"
#include "conv/grouped/grouped.h"
#include "conv/paired/paired.h"
#include "conv/strassen/strassen.h"
#include "conv/winograd/winograd.h"

namespace resfuse {

std::span<const ConvAlgorithm* const> conv_algorithms() {
    static const std::array<const ConvAlgorithm*, 9> list = {
        &direct(),      &grouped(),     &grouped_f2(),       &winograd_rows(), &strassen(),
        &winograd_f2(), &winograd_f4(), &winograd_stride2(), &paired(),
    };
    return list;
}

}  // namespace resfuse
