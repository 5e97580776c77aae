#include "conv/balanced/balance.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "machine/threads.h"
#include "plan/step.h"

namespace resfuse {

double power_near(double squares, index_t n) {
    const double mean = squares / static_cast<double>(n);
    if (!(mean > 0.0) || std::isinf(mean)) return 1.0;
    constexpr int kMost = 60;
    return std::ldexp(1.0, std::clamp((std::ilogb(mean) + 1) >> 1, -kMost, kMost));
}

namespace {

double square(double x) { return x * x; }

}  // namespace

void output_powers(const PointwiseWeights& w, int threads, float* powers) {
#pragma omp parallel for num_threads(usable_threads(threads)) schedule(static)
    for (index_t k = 0; k < w.outputs; ++k) {
        double squares = 0.0;
        for (index_t c = 0; c < w.inputs; ++c)
            squares += square(static_cast<double>(w.weight[k * w.stride_k + c * w.stride_c]));
        powers[k] = static_cast<float>(power_near(squares, w.inputs));
    }
}

void input_powers(const PointwiseWeights& w, const float* output_powers, int threads, float* powers) {
    constexpr index_t kChannelsEach = 64;
#pragma omp parallel for num_threads(usable_threads(threads)) schedule(static)
    for (index_t part = 0; part < ceil_div(w.inputs, kChannelsEach); ++part) {
        const index_t begin = part * kChannelsEach, size = std::min(kChannelsEach, w.inputs - begin);
        std::vector<double> squares(static_cast<std::size_t>(size));
        for (index_t k = 0; k < w.outputs; ++k) {
            const float* const weights = w.weight + k * w.stride_k + begin * w.stride_c;
            for (index_t c = 0; c < size; ++c)
                squares[static_cast<std::size_t>(c)] +=
                    square(static_cast<double>(weights[c * w.stride_c]) / static_cast<double>(output_powers[k]));
        }
        for (index_t c = 0; c < size; ++c)
            powers[begin + c] = static_cast<float>(power_near(squares[static_cast<std::size_t>(c)], w.outputs));
    }
}

}  // namespace resfuse
