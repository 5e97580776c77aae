// Change detection. Version counters miss writes through aliases (p.data.mul_(), a NumPy view, another process). A hash
// of a few samples of each array sees a change of a whole array at once; a hash that rotates through all bytes, a slice
// a call, sees the change of any one element after as many calls as there are slices.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

#include "kernels/table.h"

namespace resfuse {

// Up to four dimensions of floats, of any strides (in floats).
struct WatchedArray {
    const float* data;
    std::array<index_t, 4> shape;
    std::array<index_t, 4> strides;

    index_t size() const { return shape[0] * shape[1] * shape[2] * shape[3]; }
};

class Fingerprint {
  public:
    // Arrays are cut into parts of at most kPartFloats, and parts are shared out into at most so many slices.
    static constexpr index_t kSlices = 31, kSlicesOfLarge = 61;
    static constexpr index_t kLargeFloats = 4 * 1024 * 1024;
    static constexpr index_t kPartFloats = 16384;
    static constexpr index_t kHashedEveryCallFloats = 16384;  // so many are hashed whole at each call

    explicit Fingerprint(std::vector<WatchedArray> arrays);

    // Hashes all slices as they are now: what `same_slice` compares with.
    void take(int threads);

    // Of the samples.
    std::uint64_t samples() const;

    // Whether the next slice is as it was; callers may run at the same time.
    bool same_slice(int threads);

    index_t slices() const { return static_cast<index_t>(slices_.size()); }

  private:
    struct Part {
        std::size_t array;
        index_t begin, end;  // elements, in the order of the shape
    };
    struct Slice {
        std::vector<Part> parts;
        index_t floats = 0;
        std::uint64_t hash = 0;
    };

    std::uint64_t hash(const Slice& slice, int threads) const;
    std::uint64_t hash(const Part& part) const;

    std::vector<WatchedArray> arrays_;
    std::vector<const float*> samples_;
    std::vector<Slice> slices_;
    std::atomic<std::uint64_t> calls_{0};
};

}  // namespace resfuse
