// Where threads meet at the end of each stage while the first one is still busy with something else.
//
// The others work on. The first thread joins them in whatever stage they are; from that stage's end on all meet at
// OpenMP's barrier again.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>

namespace resfuse {

class Arrivals {
  public:
    // All of `threads`, two or more, but the first are present.
    explicit Arrivals(int threads)
        : threads_(static_cast<std::uint16_t>(threads)), state_(State{0, static_cast<std::uint16_t>(threads - 1), 0}) {}

    // Of the first thread: the number of the stage that it takes part in from now on.
    std::size_t join() {
        State seen = state_.load(std::memory_order_acquire);
        while (!state_.compare_exchange_weak(
            seen, {seen.stage, static_cast<std::uint16_t>(seen.present + 1), seen.arrived})) {
        }
        return seen.stage;
    }

    // Returns when all that are present have arrived: whether the first thread was among them.
    bool arrive() {
        State seen = state_.load(std::memory_order_acquire), next{};
        const std::uint32_t stage = seen.stage;
        do {
            next = {stage, seen.present, static_cast<std::uint16_t>(seen.arrived + 1)};
            if (next.arrived == seen.present)
                next = {stage + 1, seen.present == threads_ ? kNobodyMissing : seen.present, 0};
        } while (!state_.compare_exchange_weak(seen, next));
        for (; next.stage == stage; next = state_.load(std::memory_order_acquire)) std::this_thread::yield();
        return next.present == kNobodyMissing;
    }

  private:
    static constexpr std::uint16_t kNobodyMissing = 0;

    struct State {
        std::uint32_t stage;
        std::uint16_t present, arrived;
    };

    std::uint16_t threads_;
    std::atomic<State> state_;
    static_assert(std::atomic<State>::is_always_lock_free);
};

}  // namespace resfuse
