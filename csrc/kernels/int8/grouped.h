// Convolutions of bytes in small groups: the kernels of kernels/grouped over whole numbers in floats.
//
// A sum of n products of bytes is below n * 255 * 128. While that is below 2^24 (has_small_groups) floats add such sums
// exactly, in any order, so that the results are the bits that other levels and kernels give.
#pragma once

#include "kernels/grouped/grouped.h"
#include "kernels/int8/bytes.h"

namespace resfuse {
namespace {

class GroupedBytes {
  public:
    explicit GroupedBytes(const Int8GroupedArgs& args)
        : args_(args), quantizer_(args.range), to_bytes_(args.epilogue.output), to_floats_(args.epilogue.output) {}

    // Bytes less their zero point; real numbers become bytes first.
    template <bool Whole>
    [[gnu::always_inline]] Vec read(index_t i, index_t lanes) const {
        const index_t n = Whole ? kVectorFloats : lanes;
        const void* const data = args_.grouped.image.data;
        const VecInt byte = args_.type == DType::u8 ? load_bytes_first(static_cast<const std::uint8_t*>(data) + i, n)
                                                    : quantizer_(load_first(static_cast<const float*>(data) + i, n));
        return to_floats(byte - args_.range.zero_point);
    }
    void prefetch(index_t i) const {
        __builtin_prefetch(static_cast<const char*>(args_.grouped.image.data) + i * size_of(args_.type));
    }
    void prefetch_result(index_t i) const {
        __builtin_prefetch(static_cast<const char*>(args_.grouped.y) + i * size_of(args_.epilogue.output.type), 1);
    }

    struct Results {
        const GroupedBytes& maps;
        Vec scale, bias, factor;
        index_t residual, y, lanes;

        [[gnu::always_inline]] void operator()(Vec sum, index_t pixel) const {
            const GroupedArgs& g = maps.args_.grouped;
            Vec v = multiply_add(sum, scale, bias);
            if (g.residual) {
                const index_t at = residual + pixel * g.residual_pixel;
                const Vec added = maps.args_.epilogue.residual_type == DType::u8
                                      ? Reader<DType::u8>::at(g.residual, at, lanes)
                                      : Reader<DType::fp32>::at(g.residual, at, lanes);
                v = multiply_add(added, factor, v);
            }
            const index_t at = y + pixel * g.y_pixel;
            if (maps.args_.epilogue.output.type == DType::u8) return maps.to_bytes_(g.y, at, v, lanes);
            maps.to_floats_(g.y, at, v, lanes);
        }
    };
    [[gnu::always_inline]] Results results(index_t first_pixel, index_t channel, index_t lanes) const {
        const GroupedArgs& g = args_.grouped;
        return {*this,
                load_first(g.scale + channel, lanes),
                load_first(g.bias + channel, lanes),
                broadcast(args_.epilogue.residual_factor),
                first_pixel * g.residual_pixel + channel,
                first_pixel * g.y_pixel + channel,
                lanes};
    }

    void finish(index_t, index_t, index_t, index_t) const {}

  private:
    static index_t size_of(DType type) { return type == DType::u8 ? 1 : 4; }

    const Int8GroupedArgs& args_;
    Quantizer quantizer_;
    Writer<DType::u8> to_bytes_;
    Writer<DType::fp32> to_floats_;
};

void int8_grouped(const Int8GroupedArgs& args) {
    const GroupedArgs& g = args.grouped;
    with_group(g.group, [&]<int Group>() {
        if constexpr (Group <= kMostChannelsOfByteGroups) grouped_of<Group>(GroupedBytes(args), g);
    });
}

}  // namespace
}  // namespace resfuse
