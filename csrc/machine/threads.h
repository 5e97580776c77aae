// What every parallel region of the core needs to know of the process and of its threads.
#pragma once

#include <cstdint>

namespace resfuse {

// As many threads as wanted, but no more than the control group's quota gives time for: more would be stopped, all of
// them, in the middle of a step. One in a process that was forked while there were others: OpenMP's pool does not
// survive a fork, and a region that waits for it would wait forever.
int usable_threads(int wanted);

// What OMP_NUM_THREADS says; else one for each core that this process may use, two threads of one core being no faster.
int default_threads();

// Denormal numbers count as zeros while it lives: each would cost a hundred cycles, and none changes a result by more
// than 1e-38. Restores what the thread had.
class FlushDenormals {
  public:
    FlushDenormals();
    ~FlushDenormals();
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;

  private:
    std::uint64_t before_;  // the control register
};

}  // namespace resfuse
