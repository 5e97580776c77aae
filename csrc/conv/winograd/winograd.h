// Winograd's algorithms for 3x3 convolutions: F(2x2) and F(4x4) of stride 1, F(4x4, 2x2) of the phases of stride 2, and
// F(4x4) of bytes.
#pragma once

#include "plan/algorithm.h"

namespace resfuse {

const ConvAlgorithm& winograd_f2();
const ConvAlgorithm& winograd_f4();
const ConvAlgorithm& winograd_stride2();
const ConvAlgorithm& winograd_int8();  // exact, F(4x4) of words

// The names by which a layer may ask for one of several Winograd algorithms.
std::vector<std::string_view> winograd_requests();
// Whether a layer may take one.
bool allows_winograd(const Layer& layer);
// With which stride one computes this layer of real numbers; 0: none does.
index_t winograd_stride(const Layer& layer);

// In a table of kernels.
inline const WinogradKernels& winograd_f2_kernels(const KernelTable& kernels) { return kernels.winograd[0]; }
inline const WinogradKernels& winograd_f4_kernels(const KernelTable& kernels) { return kernels.winograd[1]; }
inline const WinogradKernels& winograd_stride2_kernels(const KernelTable& kernels) { return kernels.winograd[2]; }
inline const WinogradKernels& winograd_int8_kernels(const KernelTable& kernels) { return kernels.int8.winograd; }

std::unique_ptr<Step> make_winograd_step(const StepContext& context, std::size_t layer, const ConvAlgorithm& algorithm,
                                         const WinogradKernels& winograd);

}  // namespace resfuse
