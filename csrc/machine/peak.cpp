#include "machine/peak.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "machine/threads.h"

namespace resfuse {

double measure_multiply_adds(const KernelTable& kernels, int threads) {
    constexpr index_t kSteps = 1'000'000;
    std::array<double, 9> rates{};
    for (double& rate : rates) {
        index_t done = 0;
        const auto start = std::chrono::steady_clock::now();
#pragma omp parallel num_threads(usable_threads(threads)) reduction(+ : done)
        done += kernels.multiply_adds_at_peak(kSteps);
        rate =
            static_cast<double>(done) / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    std::sort(rates.begin(), rates.end());
    return rates[rates.size() / 2];
}

}  // namespace resfuse
