#include "plan/algorithm.h"

#include <algorithm>
#include <stdexcept>

#include "machine/cpu.h"

namespace resfuse {

namespace {

// Bytes that a core streams per cycle while it computes, from L3 and from memory; measured.
constexpr double kCacheBytesPerCycle = 9.0;
constexpr double kMemoryBytesPerCycle = 4.5;

bool answers(const ConvAlgorithm& algorithm, const std::string& request) {
    const std::vector<std::string_view> names = algorithm.requests();
    return std::find(names.begin(), names.end(), request) != names.end();
}

bool allows(const std::string& request, const ConvAlgorithm& algorithm) {
    if (is_automatic(request)) return request == "auto" || algorithm.packs_for_one_call();
    return answers(algorithm, request);
}

}  // namespace

bool is_automatic(const std::string& request) { return request == "auto" || request == "auto_once"; }

std::string require_algorithm(const std::string& request) {
    std::vector<std::string_view> names = {"auto", "auto_once"};
    for (const ConvAlgorithm* const algorithm : conv_algorithms())
        for (const std::string_view name : algorithm->requests())
            if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    if (std::find(names.begin(), names.end(), request) != names.end()) return request;
    std::string wanted;
    for (const std::string_view name : names) wanted += (wanted.empty() ? "'" : ", '") + std::string(name) + "'";
    throw std::invalid_argument("algorithm: got '" + request + "', want one of " + wanted);
}

const ConvAlgorithm& choose_algorithm(const ConvCall& call) {
    const std::string& request = call.layer.algorithm;
    const ConvAlgorithm* best = nullptr;
    for (const ConvAlgorithm* const other : conv_algorithms()) {
        if (!other->applies(call.layer, call.out, call.kernels)) continue;
        if (best == nullptr) {
            best = other;
            continue;
        }
        if (!allows(request, *other)) continue;
        const bool asked_for = !is_automatic(request) && !answers(*best, request);
        if (asked_for || best->cycles(call) >= other->required_speedup(*best) * other->cycles(call)) best = other;
    }
    if (best == nullptr) throw std::invalid_argument(call.layer.name + ": no algorithm computes it");
    return *best;
}

double stream_bytes_per_cycle(const std::vector<Layer>& layers, const std::vector<PlannedBuffer>& buffers,
                              const KernelTable& kernels) {
    // Of a cache that others share; transformed weights are several times as large.
    constexpr std::size_t kShareOfL3 = 4;
    std::size_t bytes = 0;
    for (const Layer& layer : layers) {
        if (layer.kind != LayerKind::conv) continue;
        for (const ConvAlgorithm* const algorithm : conv_algorithms())
            if (algorithm->applies(layer, buffers[static_cast<std::size_t>(layer.output)].extent, kernels)) {
                bytes += algorithm->packed_bytes(layer, kernels);
                break;
            }
    }
    return bytes <= cache_sizes().l3 / kShareOfL3 ? kCacheBytesPerCycle : kMemoryBytesPerCycle;
}

}  // namespace resfuse
