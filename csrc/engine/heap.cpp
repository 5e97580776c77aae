#include "engine/heap.h"

#include <sys/mman.h>

#include <cstdlib>
#include <iterator>
#include <new>

#include "engine/aligned.h"

namespace resfuse {

namespace {

constexpr std::size_t kLeastSlab = std::size_t{8} << 20;

std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

Heap& Heap::global() {
    // Never destroyed: tensors may outlive static objects.
    static Heap* const heap = new Heap;
    return *heap;
}

#if defined(__SANITIZE_ADDRESS__)

// Overruns of a block must be seen.
void* Heap::take(std::size_t bytes) {
    void* block = nullptr;
    if (posix_memalign(&block, kAlignment, bytes) != 0) throw std::bad_alloc();
    return block;
}

void Heap::give_back(void* block) noexcept { std::free(block); }

#else

void* Heap::take(std::size_t bytes) {
    // A page more than asked for: blocks of equal size would otherwise start in the same cache sets.
    bytes = round_up(bytes, kAlignment) + kAlignment;
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto smallest = [&] {
        auto best = free_.end();
        for (auto it = free_.begin(); it != free_.end(); ++it)
            if (it->second >= bytes && (best == free_.end() || it->second < best->second)) best = it;
        return best;
    };
    auto block = smallest();
    if (block == free_.end()) {
        grow(bytes);
        block = smallest();
    }
    const auto [address, size] = *block;
    used_.emplace(address, bytes);
    free_.erase(block);
    if (size > bytes) free_.emplace(address + bytes, size - bytes);
    taken_ += bytes;
    return address;
}

void Heap::give_back(void* data) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto it = used_.find(static_cast<Address>(data));
    if (it == used_.end()) return;
    const auto [address, bytes] = *it;
    used_.erase(it);
    taken_ -= bytes;
    release(address, bytes);
}

#endif

void Heap::release(Address address, std::size_t bytes) {
    auto after = free_.lower_bound(address);
    if (after != free_.end() && address + bytes == after->first) {
        bytes += after->second;
        after = free_.erase(after);
    }
    if (after != free_.begin()) {
        const auto before = std::prev(after);
        if (before->first + before->second == address) {
            before->second += bytes;
            return;
        }
    }
    free_.emplace_hint(after, address, bytes);
}

void Heap::grow(std::size_t bytes) {
    // Below the slabs that are there, if it can be: neighbours join, and less is lost between blocks.
    const std::size_t slab = round_up(bytes > kLeastSlab ? bytes : kLeastSlab, AlignedFloats::kHugePage);
    void* const hint = lowest_ ? lowest_ - slab : nullptr;
    void* const data = mmap(hint, slab, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    advise_huge_pages(data, slab);
    const Address address = static_cast<Address>(data);
    lowest_ = lowest_ && lowest_ < address ? lowest_ : address;
    mapped_ += slab;
    release(address, slab);
}

std::size_t Heap::mapped_bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return mapped_;
}

std::size_t Heap::used_bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return taken_;
}

}  // namespace resfuse
