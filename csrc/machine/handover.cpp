#include "machine/handover.h"

#include <omp.h>

#include <atomic>
#include <chrono>

#include "machine/threads.h"

namespace resfuse {

double measure_handover(int threads) {
    using Clock = std::chrono::steady_clock;
    constexpr int kTurns = 4000;
    constexpr int kSpins = 1 << 14;
    // Threads may share a core; then each turn waits for the scheduler.
    constexpr std::chrono::milliseconds kMost{100};
    alignas(128) std::atomic<int> turn{0};
    double seconds = 0.0;
#pragma omp parallel num_threads(usable_threads(threads))
    {
        const int thread = omp_get_thread_num(), last = omp_get_num_threads() - 1;
#pragma omp barrier
        if (last > 0 && (thread == 0 || thread == last)) {
            const int mine = thread == 0 ? 0 : 1;
            const Clock::time_point start = Clock::now();
            int spins = 0;
            for (int now = turn.load(); now < kTurns; now = turn.load(std::memory_order_acquire)) {
                if (now % 2 == mine) turn.store(now + 1, std::memory_order_release);
                if (++spins % kSpins == 0 && Clock::now() - start > kMost) break;
            }
            const int turns = turn.load();
            if (thread == 0 && turns > 0) seconds = std::chrono::duration<double>(Clock::now() - start).count() / turns;
        }
    }
    return seconds;
}

}  // namespace resfuse
