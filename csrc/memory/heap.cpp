#include "memory/heap.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <new>

#include "memory/aligned.h"

namespace resfuse {

namespace {

constexpr std::size_t kLeastSlab = std::size_t{8} << 20;

std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

std::size_t slab_of(std::size_t bytes) { return round_up(std::max(bytes, kLeastSlab), AlignedBytes::kHugePage); }

void* map_pages(void* hint, std::size_t bytes) {
    void* const data = mmap(hint, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    return data;
}

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
    // From its upper end: what is left of the lowest slab joins the next one, which lies below.
    block->second -= bytes;
    const Address address = block->first + block->second;
    if (block->second == 0) free_.erase(block);
    used_.emplace(address, bytes);
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
    // Below the slabs that are there, if it can be: what is free at their lower end then counts.
    const bool joins = !free_.empty() && free_.begin()->first == lowest_;
    std::size_t slab = slab_of(joins ? bytes - free_.begin()->second : bytes);
    const Address hint = lowest_ ? lowest_ - slab : nullptr;
    void* data = map_pages(hint, slab);
    if (joins && data != hint) {
        munmap(data, slab);
        slab = slab_of(bytes);
        data = map_pages(nullptr, slab);
    }
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
