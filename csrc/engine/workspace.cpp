#include "engine/workspace.h"

#include <algorithm>

namespace resfuse {

WorkspacePool& WorkspacePool::global() {
    static WorkspacePool pool;
    return pool;
}

AlignedFloats WorkspacePool::take(std::size_t floats) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        // The smallest block that is large enough; else the largest one makes room for its successor.
        auto best = free_.end();
        for (auto it = free_.begin(); it != free_.end(); ++it)
            if (it->size() >= floats && (best == free_.end() || it->size() < best->size())) best = it;
        if (best != free_.end()) {
            AlignedFloats block = std::move(*best);
            free_.erase(best);
            return block;
        }
        if (!free_.empty())
            free_.erase(std::max_element(free_.begin(), free_.end(),
                                         [](const auto& a, const auto& b) { return a.size() < b.size(); }));
    }
    return AlignedFloats(floats);
}

void WorkspacePool::give_back(AlignedFloats block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(block));
}

std::size_t WorkspacePool::bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::size_t floats = 0;
    for (const AlignedFloats& block : free_) floats += block.size();
    return floats * sizeof(float);
}

}  // namespace resfuse
