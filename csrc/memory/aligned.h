// Aligned memory; large blocks come from the heap.
#pragma once

#include <cstddef>
#include <memory>

namespace resfuse {

// Asks for huge pages for the whole ones inside [data, data + bytes): fresh memory then costs one page fault per 2 MiB
// instead of 512, which is most of the time of a kernel that only writes.
void advise_huge_pages(void* data, std::size_t bytes);

class AlignedBytes {
  public:
    AlignedBytes() = default;
    explicit AlignedBytes(std::size_t bytes) : size_(bytes) {
        if (bytes > 0) data_.reset(take(bytes));
    }

    std::byte* data() const { return data_.get(); }
    std::size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }

    static constexpr std::size_t kCacheLine = 64;
    static constexpr std::size_t kHugePage = std::size_t{1} << 21;

  private:
    struct Free {
        void operator()(std::byte* p) const;
    };
    static std::byte* take(std::size_t bytes);

    std::unique_ptr<std::byte, Free> data_;
    std::size_t size_ = 0;
};

class AlignedFloats {
  public:
    AlignedFloats() = default;
    explicit AlignedFloats(std::size_t floats) : bytes_(floats * sizeof(float)) {}

    float* data() const { return reinterpret_cast<float*>(bytes_.data()); }
    std::size_t size() const { return bytes_.size() / sizeof(float); }
    bool empty() const { return bytes_.empty(); }

  private:
    AlignedBytes bytes_;
};

}  // namespace resfuse
