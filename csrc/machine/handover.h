// How far apart cores are, for benchmarks.
#pragma once

namespace resfuse {

// Seconds that a cache line takes from the first thread's core to the last one's; 0 with one thread. On one L3 that is
// tens of nanoseconds, between processors or their chiplets several times as long.
double measure_handover(int threads);

}  // namespace resfuse
