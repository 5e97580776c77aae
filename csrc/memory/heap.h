// Memory for large blocks: activations between forward and backward, packed weights, workspaces. What is given back is
// handed out again, already mapped: a page fault costs several times what writing the page does.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>

namespace resfuse {

class Heap {
  public:
    static Heap& global();

    // A block aligned to kAlignment; throws std::bad_alloc.
    void* take(std::size_t bytes);
    void give_back(void* block) noexcept;

    std::size_t mapped_bytes() const;
    std::size_t used_bytes() const;

    static constexpr std::size_t kAlignment = 4096;
    // Blocks from here on are worth a place in the heap.
    static constexpr std::size_t kLeastBytes = std::size_t{1} << 18;

  private:
    using Address = unsigned char*;
    void grow(std::size_t bytes);
    void release(Address address, std::size_t bytes);

    mutable std::mutex mutex_;
    std::map<Address, std::size_t> free_;  // neighbours are joined
    std::map<Address, std::size_t> used_;
    Address lowest_ = nullptr;
    std::size_t mapped_ = 0, taken_ = 0;
};

}  // namespace resfuse
