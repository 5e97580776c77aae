#include "machine/arm_features.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>

#include <cstddef>
#endif

namespace resfuse {

#if defined(__aarch64__) && defined(__linux__)

// Linux, Documentation/arch/arm64/elf_hwcaps.rst.
ArmFeatures arm_features() {
    const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    return {(first & HWCAP_ASIMDDP) != 0, (second & HWCAP2_I8MM) != 0, (second & HWCAP2_BF16) != 0};
}

#elif defined(__aarch64__) && defined(__APPLE__)

namespace {

bool has_feature(const char* name) {
    int value = 0;
    std::size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

}  // namespace

// Apple, "Determining instruction set characteristics".
ArmFeatures arm_features() {
    return {has_feature("hw.optional.arm.FEAT_DotProd"), has_feature("hw.optional.arm.FEAT_I8MM"),
            has_feature("hw.optional.arm.FEAT_BF16")};
}

#else

ArmFeatures arm_features() { return {}; }

#endif

}  // namespace resfuse
