// Cache-line aligned float storage.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace resfuse {

// Asks for huge pages for the whole ones inside [data, data + bytes): fresh memory then costs one page fault per 2 MiB
// instead of 512, which is most of the time of a kernel that only writes.
void advise_huge_pages(void* data, std::size_t bytes);

class AlignedFloats {
  public:
    AlignedFloats() = default;
    explicit AlignedFloats(std::size_t floats) : size_(floats) {
        if (floats == 0) return;
        // Large blocks start on a huge page where the kernel gives one: packed weights are read front to back.
        const std::size_t alignment = floats * sizeof(float) >= kHugePage ? kHugePage : kCacheLine;
        const std::size_t bytes = (floats * sizeof(float) + alignment - 1) / alignment * alignment;
        data_.reset(static_cast<float*>(std::aligned_alloc(alignment, bytes)));
        if (!data_) throw std::bad_alloc();
        advise_huge_pages(data_.get(), bytes);
    }

    float* data() const { return data_.get(); }
    std::size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }

    static constexpr std::size_t kCacheLine = 64;
    static constexpr std::size_t kHugePage = std::size_t{1} << 21;

  private:
    struct Free {
        void operator()(float* p) const { std::free(p); }
    };
    std::unique_ptr<float, Free> data_;
    std::size_t size_ = 0;
};

}  // namespace resfuse
