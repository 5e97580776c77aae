#include "engine/heap.h"

#include <cstdlib>
#include <new>

#include "engine/aligned.h"

namespace resfuse {

namespace {

constexpr std::size_t kLeastSlab = std::size_t{32} << 20;

std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

Heap& Heap::global() {
    // Never destroyed: tensors may outlive static objects.
    static Heap* const heap = new Heap;
    return *heap;
}

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
    Address address = it->first;
    std::size_t bytes = it->second;
    used_.erase(it);
    taken_ -= bytes;
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
    // The last page stays unused, so that slabs which happen to be neighbours are not joined.
    const std::size_t slab =
        round_up(bytes + kAlignment > kLeastSlab ? bytes + kAlignment : kLeastSlab, AlignedFloats::kHugePage);
    void* const data = std::aligned_alloc(AlignedFloats::kHugePage, slab);
    if (!data) throw std::bad_alloc();
    advise_huge_pages(data, slab);
    free_.emplace(static_cast<Address>(data), slab - kAlignment);
    mapped_ += slab;
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
