#include "machine/cgroup.h"

#include <fstream>
#include <iterator>
#include <sstream>

namespace resfuse {

namespace {

// Version 2: one file, "QUOTA PERIOD" or "max PERIOD"; version 1: two, and -1 for none.
double quota_of(const std::string& directory) {
    double quota = 0, period = 0;
    if (std::ifstream file(directory + "/cpu.max"); file >> quota >> period) return period > 0 ? quota / period : 0;
    std::ifstream quotas(directory + "/cpu.cfs_quota_us"), periods(directory + "/cpu.cfs_period_us");
    return quotas >> quota && periods >> period && quota > 0 && period > 0 ? quota / period : 0;
}

double least(double a, double b) { return a == 0 || (b != 0 && b < a) ? b : a; }

// Of the group and of all above it. A container may not see the path that the host gives it, but sees its root.
double least_quota(const std::string& mount, std::string path) {
    double found = 0;
    for (;;) {
        found = least(found, quota_of(mount + path));
        const std::size_t slash = path.rfind('/');
        if (slash == std::string::npos) return found;
        path.resize(slash);
    }
}

bool has_cpu(const std::string& controllers) {
    std::istringstream names(controllers);
    for (std::string name; std::getline(names, name, ',');)
        if (name == "cpu") return true;
    return false;
}

}  // namespace

double cgroup_cpus(const std::string& root, const std::string& membership) {
    double found = 0;
    std::istringstream lines(membership);
    for (std::string number, controllers, path;
         std::getline(lines, number, ':') && std::getline(lines, controllers, ':') && std::getline(lines, path);) {
        if (controllers.empty()) found = least(found, least_quota(root, path));
        if (has_cpu(controllers)) found = least(found, least_quota(root + "/cpu", path));
    }
    return found;
}

double cpu_quota() {
    static const double quota = [] {
        std::ifstream file("/proc/self/cgroup");
        return cgroup_cpus("/sys/fs/cgroup", {std::istreambuf_iterator<char>(file), {}});
    }();
    return quota;
}

}  // namespace resfuse
