#include "engine/balance.h"

#include <algorithm>
#include <cmath>

#include "engine/step.h"
#include "engine/threads.h"

namespace resfuse {

namespace {

double power_near(double squares, index_t n) {
    const double mean = squares / static_cast<double>(n);
    if (!(mean > 0.0) || std::isinf(mean)) return 1.0;
    constexpr int kMost = 60;
    return std::ldexp(1.0, std::clamp((std::ilogb(mean) + 1) >> 1, -kMost, kMost));
}

double square(double x) { return x * x; }

}  // namespace

void output_powers(const WeightMatrix& w, int threads, float* powers) {
#pragma omp parallel for num_threads(usable_threads(threads)) schedule(static)
    for (index_t k = 0; k < w.outputs; ++k) {
        double squares = 0.0;
        for (const index_t step : w.steps) squares += square(static_cast<double>(w.weight[k * w.stride_k + step]));
        powers[k] = static_cast<float>(power_near(squares, static_cast<index_t>(w.steps.size())));
    }
}

void step_powers(const WeightMatrix& w, const float* output_powers, int threads, float* powers) {
    constexpr index_t kStepsEach = 64;
    const index_t steps = static_cast<index_t>(w.steps.size());
#pragma omp parallel for num_threads(usable_threads(threads)) schedule(static)
    for (index_t part = 0; part < ceil_div(steps, kStepsEach); ++part) {
        const index_t begin = part * kStepsEach, size = std::min(kStepsEach, steps - begin);
        const index_t* const at = w.steps.data() + begin;
        double squares[kStepsEach] = {};
        for (index_t k = 0; k < w.outputs; ++k)
            for (index_t i = 0; i < size; ++i)
                squares[i] += square(static_cast<double>(w.weight[k * w.stride_k + at[i]]) /
                                     static_cast<double>(output_powers[k]));
        for (index_t i = 0; i < size; ++i) powers[begin + i] = static_cast<float>(power_near(squares[i], w.outputs));
    }
}

}  // namespace resfuse
