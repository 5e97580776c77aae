// Aligned float storage; large blocks come from the heap.
#pragma once

#include <cstddef>
#include <memory>

namespace resfuse {

// Asks for huge pages for the whole ones inside [data, data + bytes): fresh memory then costs one page fault per 2 MiB
// instead of 512, which is most of the time of a kernel that only writes.
void advise_huge_pages(void* data, std::size_t bytes);

class AlignedFloats {
  public:
    AlignedFloats() = default;
    explicit AlignedFloats(std::size_t floats) : size_(floats) {
        if (floats > 0) data_.reset(take(floats));
    }

    float* data() const { return data_.get(); }
    std::size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }

    static constexpr std::size_t kCacheLine = 64;
    static constexpr std::size_t kHugePage = std::size_t{1} << 21;

  private:
    struct Free {
        void operator()(float* p) const;
    };
    static float* take(std::size_t floats);

    std::unique_ptr<float, Free> data_;
    std::size_t size_ = 0;
};

}  // namespace resfuse
