#include "memory/fingerprint.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "machine/threads.h"

namespace resfuse {
namespace {

// A lane is h = rotated(h) * odd + word, and lanes are added up with odd factors: whatever one word becomes, the sum
// changes. Without the rotation two changed signs would cancel out.
constexpr int kVectors = 8, kWidth = 4;
constexpr std::uint32_t kFactor = 0x9e3779b1u;
constexpr std::uint64_t kMix = 0x9e3779b97f4a7c15u;
constexpr index_t kBlock = kVectors * kWidth;
constexpr index_t kParallelFloats = 65536;
constexpr index_t kAhead = 512;  // floats fetched ahead, past the caches that packed weights are in

using Lanes = std::uint32_t __attribute__((vector_size(4 * kWidth)));

std::uint64_t hash_dense(const float* data, index_t count) {
    Lanes lanes[kVectors] = {};
    index_t i = 0;
    for (; i + kBlock <= count; i += kBlock) {
        __builtin_prefetch(data + i + kAhead, 0, 0);
        __builtin_prefetch(data + i + kAhead + kBlock / 2, 0, 0);
        for (int v = 0; v < kVectors; ++v) {
            Lanes words;
            std::memcpy(&words, data + i + v * kWidth, sizeof words);
            lanes[v] = (lanes[v] << 13 | lanes[v] >> 19) * kFactor + words;
        }
    }
    std::uint64_t sum = 0, factor = 1;
    for (const Lanes& vector : lanes)
        for (int lane = 0; lane < kWidth; ++lane) {
            sum += vector[lane] * factor;
            factor = factor * kMix + 2;  // odd again
        }
    for (; i < count; ++i) sum = std::rotl(sum, 13) * kMix + std::bit_cast<std::uint32_t>(data[i]);
    return sum;
}

bool is_dense(const WatchedArray& array) {
    index_t stride = 1;
    for (std::size_t d = 4; d-- > 0;) {
        if (array.shape[d] != 1 && array.strides[d] != stride) return false;
        stride *= array.shape[d];
    }
    return true;
}

const float* address(const WatchedArray& array, index_t element) {
    const float* at = array.data;
    for (std::size_t d = 4; d-- > 0;) {
        at += element % array.shape[d] * array.strides[d];
        element /= array.shape[d];
    }
    return at;
}

}  // namespace

Fingerprint::Fingerprint(std::vector<WatchedArray> arrays) : arrays_(std::move(arrays)) {
    constexpr index_t kSamples = 4;  // of each array
    index_t total = 0;
    for (const WatchedArray& array : arrays_) {
        const index_t size = array.size(), samples = std::min(size, kSamples);
        for (index_t i = 0; i < samples; ++i)
            samples_.push_back(address(array, samples == 1 ? 0 : i * (size - 1) / (samples - 1)));
        total += size;
    }
    const index_t count = total <= kHashedEveryCallFloats ? 1 : total <= kLargeFloats ? kSlices : kSlicesOfLarge;
    const index_t floats = (total + count - 1) / count;  // of a slice
    slices_.resize(static_cast<std::size_t>(count));
    std::size_t slice = 0;
    for (std::size_t a = 0; a < arrays_.size(); ++a) {
        const index_t size = arrays_[a].size();
        for (index_t begin = 0; begin < size;) {
            while (slices_[slice].floats >= floats) ++slice;
            const index_t end = begin + std::min({size - begin, kPartFloats, floats - slices_[slice].floats});
            slices_[slice].parts.push_back({a, begin, end});
            slices_[slice].floats += end - begin;
            begin = end;
        }
    }
}

std::uint64_t Fingerprint::hash(const Part& part) const {
    const WatchedArray& array = arrays_[part.array];
    if (is_dense(array)) return hash_dense(array.data + part.begin, part.end - part.begin);
    std::uint64_t sum = 0;
    for (index_t i = part.begin; i < part.end; ++i)
        sum = std::rotl(sum, 13) * kMix + std::bit_cast<std::uint32_t>(*address(array, i));
    return sum;
}

std::uint64_t Fingerprint::hash(const Slice& slice, int threads) const {
    std::vector<std::uint64_t> hashes(slice.parts.size());
    const auto count = static_cast<index_t>(hashes.size());
    const int team = slice.floats >= kParallelFloats ? usable_threads(threads) : 1;
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
    for (index_t i = 0; i < count; ++i)
        hashes[static_cast<std::size_t>(i)] = hash(slice.parts[static_cast<std::size_t>(i)]);
    std::uint64_t sum = 0;
    for (const std::uint64_t part : hashes) sum = std::rotl(sum, 13) * kMix + part;
    return sum;
}

void Fingerprint::take(int threads) {
    for (Slice& slice : slices_) slice.hash = hash(slice, threads);
}

bool Fingerprint::same_slice(int threads) {
    const Slice& slice = slices_[calls_.fetch_add(1, std::memory_order_relaxed) % slices_.size()];
    return hash(slice, threads) == slice.hash;
}

std::uint64_t Fingerprint::samples() const {
    std::uint64_t sum = 0xcbf29ce484222325u;
    for (const float* const sample : samples_) {
        sum = (sum ^ std::bit_cast<std::uint32_t>(*sample)) * kMix;
        sum ^= sum >> 29;
    }
    return sum;
}

}  // namespace resfuse
