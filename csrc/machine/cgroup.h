// How many CPUs' time the kernel lets this process have: Linux control groups, versions 1 and 2.
#pragma once

#include <string>

namespace resfuse {

// The least quota of a process's control group and of those above it, in CPUs; 0 where none is set. `membership` is the
// text of its /proc/PID/cgroup, `root` where control groups are mounted.
double cgroup_cpus(const std::string& root, const std::string& membership);

// That of this process, read once.
double cpu_quota();

}  // namespace resfuse
