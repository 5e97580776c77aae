// What a 64-bit Arm CPU has besides NEON.
#pragma once

namespace resfuse {

struct ArmFeatures {
    bool dotprod;  // FEAT_DotProd: sdot, udot
    bool i8mm;     // FEAT_I8MM: usmmla
    bool bf16;     // FEAT_BF16: bfmmla
};

ArmFeatures arm_features();

}  // namespace resfuse
