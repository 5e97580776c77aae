// The list of the algorithms for convolutions.
#include <vector>

#include "conv/direct/direct.h"
#include "conv/grouped/grouped.h"
#include "conv/paired/paired.h"
#include "conv/strassen/strassen.h"
#include "conv/winograd/winograd.h"
#include "conv/winograd_rows/winograd_rows.h"

namespace resfuse {

std::span<const ConvAlgorithm* const> conv_algorithms() {
    static const std::vector<const ConvAlgorithm*> list = {
        &direct(),            // all layers but those of small groups
        &direct_pairs(),      // likewise, of bf16 where the CPU multiplies it
        &grouped(),           // small groups
        &grouped_f2(),        // their 3x3 windows of stride 1
        &winograd_rows(),     // 7x7 stems of stride 2
        &strassen(),          // 1x1
        &winograd_f2(),       // 3x3 of stride 1
        &winograd_f4(),       // likewise
        &winograd_stride2(),  // 3x3 of stride 2
        &winograd_int8(),     // 3x3 of stride 1, of bytes
        &paired(),            // 1x1 and small feature maps, on Zen 4
    };
    return list;
}

}  // namespace resfuse
