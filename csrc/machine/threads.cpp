#include "machine/threads.h"

#include <dirent.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>

#include "machine/cgroup.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace resfuse {

namespace {

std::atomic<bool> has_threads{false};  // the process that is being forked
std::atomic<bool> lost_threads{false};

bool several_threads() {
    DIR* tasks = opendir("/proc/self/task");
    if (tasks == nullptr) return true;  // not told: be careful
    int entries = 0;
    while (readdir(tasks) != nullptr) ++entries;
    closedir(tasks);
    return entries > 3;  // ".", ".." and one thread
}

const bool registered = [] {
    pthread_atfork([] { has_threads = several_threads(); }, nullptr,
                   [] { lost_threads = lost_threads || has_threads; });
    return true;
}();

}  // namespace

int usable_threads(int wanted) {
    if (registered && lost_threads.load(std::memory_order_relaxed)) return 1;
    const double quota = cpu_quota();
    return quota > 0 && quota < wanted ? static_cast<int>(std::ceil(quota)) : wanted;
}

int default_threads() {
    const char* const told = std::getenv("OMP_NUM_THREADS");
    if (told != nullptr && *told != '\0') return usable_threads(omp_get_max_threads());
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return usable_threads(omp_get_max_threads());
    std::set<std::string> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
        std::string siblings;
        if (!std::getline(file, siblings)) siblings = std::to_string(cpu);
        cores.insert(siblings);
    }
    return usable_threads(cores.empty() ? 1 : static_cast<int>(cores.size()));
}

#if defined(__SSE__)
FlushDenormals::FlushDenormals() : before_(_mm_getcsr()) {
    constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
    _mm_setcsr(static_cast<unsigned>(before_) | kFlushToZero | kDenormalsAreZero);
}
FlushDenormals::~FlushDenormals() { _mm_setcsr(static_cast<unsigned>(before_)); }
#elif defined(__aarch64__)
namespace {

std::uint64_t control() {
    std::uint64_t value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
}
void set_control(std::uint64_t value) { asm volatile("msr fpcr, %0" : : "r"(value)); }

}  // namespace

FlushDenormals::FlushDenormals() : before_(control()) {
    constexpr std::uint64_t kFlushToZero = std::uint64_t{1} << 24;
    set_control(before_ | kFlushToZero);
}
FlushDenormals::~FlushDenormals() { set_control(before_); }
#else
FlushDenormals::FlushDenormals() : before_(0) {}
FlushDenormals::~FlushDenormals() = default;
#endif

}  // namespace resfuse
