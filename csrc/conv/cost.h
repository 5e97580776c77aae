// What the algorithms' costs have in common: pure functions of a layer's shape, the ISA and the cache sizes. Nothing
// here depends on the number of threads, so results do not either.
#pragma once

#include "plan/algorithm.h"

namespace resfuse {

// Of the shorter of computing and streaming, what the longer does not hide; measured.
constexpr double kNotHidden = 0.3;

// Of computing and of streaming some bytes from beyond L2 meanwhile.
double cycles_of(double compute, double bytes, double bytes_per_cycle, double not_hidden = kNotHidden);

// Of the product of some rows with the weights of a group.
double product_cycles(double rows, index_t depth, index_t columns, const KernelTable& kernels);

// Bytes of packed weights.
double streamed_bytes(const ConvAlgorithm& algorithm, const ConvCall& call);

// Rows of so many floats that are a share of L2.
index_t rows_in_l2(index_t floats, double share);

// Of L2, what the operands of a task of Strassen's algorithm or in pairs may take: what comes next, the pixels
// themselves and the weights pass through it as well.
constexpr double kShareOfOperands = 0.2;

// Steps of a product's reduction until its sums are stored.
index_t gemm_chunk(const KernelTable& kernels);

// Whether each of some threads that share out a layer's weights makes all operands from the input rather than wait for
// what the others make of their part: there are few threads, and lines come slowly from another core's cache, above all
// from one behind another L3.
bool repeats_operands(int threads);

}  // namespace resfuse
