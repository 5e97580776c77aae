#include "memory/aligned.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#include "memory/heap.h"

namespace resfuse {

void advise_huge_pages(void* data, std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t page = AlignedBytes::kHugePage;
    const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(data);
    const std::uintptr_t begin = (address + page - 1) / page * page, end = (address + bytes) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)data;
    (void)bytes;
#endif
}

namespace {

// Small blocks are told from the heap's by what lies before them.
struct alignas(AlignedBytes::kCacheLine) Header {
    bool from_heap;
};

}  // namespace

std::byte* AlignedBytes::take(std::size_t bytes) {
    bytes = (bytes + kCacheLine - 1) / kCacheLine * kCacheLine + sizeof(Header);
    const bool from_heap = bytes >= Heap::kLeastBytes;
    void* const block = from_heap ? Heap::global().take(bytes) : std::aligned_alloc(kCacheLine, bytes);
    if (!block) throw std::bad_alloc();
    return reinterpret_cast<std::byte*>(new (block) Header{from_heap} + 1);
}

void AlignedBytes::Free::operator()(std::byte* p) const {
    Header* const header = reinterpret_cast<Header*>(p) - 1;
    if (header->from_heap) {
        Heap::global().give_back(header);
    } else {
        std::free(header);
    }
}

}  // namespace resfuse
