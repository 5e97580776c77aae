// Winograd convolution, blocked over tiles.
//
// fused: one stage; a task transforms a block of tiles into its own V, and panel by panel multiplies the frequencies
//        and transforms back, so V and M of a block stay in the core's L2. For many tiles and small weights, and for
//        few tiles and few threads: a task then takes all tiles, but only a part of the panels.
// split: stage 0 transforms all tiles of the wave into one shared V; in stage 1 a task takes a group of weight panels
//        over a block of tiles, so the transformed weights are streamed once. For few tiles and large weights.
// Of stride 2 the four phases of the image are transformed and multiplied one after the other, their products added up.
// Of a convolution in groups a task of the fused form takes some of the groups.
// Where global average pooling follows, blocks are whole images: the feature maps of one weight panel stay in cache and
// their means alone are written.
#include <algorithm>

#include "conv/conv_step.h"
#include "conv/winograd/blocking.h"
#include "conv/winograd/winograd.h"
#include "memory/arena.h"

namespace resfuse {

namespace {

constexpr index_t kPad = 16;  // operands between frequencies, against cache-set conflicts

// Tiles of one image that are transformed alike: a rectangle of its grid of tiles.
struct TileClass {
    Range rows, cols;
    int row_kind, col_kind;
    index_t before;  // tiles of the classes before this one
    index_t size() const { return rows.size() * cols.size(); }
};

class WinogradStep final : public ConvStep {
  public:
    WinogradStep(const StepContext& context, std::size_t index, const ConvAlgorithm& algorithm,
                 const WinogradKernels& winograd)
        : ConvStep(context, index, algorithm),
          kernels_(winograd),
          tiles_(winograd_tiles(kernels_, out_)),
          per_image_(tiles_.per_image()),
          depth_(winograd_depth(layer_)),
          phases_(static_cast<int>(kernels_.stride * kernels_.stride)),
          blocking_(
              winograd_schedule(layer_, winograd, tiles_, context.images, context.threads, context.kernels()).blocking),
          pooled_(context.averaged(index)),
          pools_(pooled_ && layer_.type == DType::fp32 && blocking_.block >= per_image_ &&
                 pixels() * grid_.tile_cols <= kMostPooledFloats),
          unit_(pools_ || tiles_.has_edges() ? per_image_ : 1) {
        make_classes();
        blocking_.block = std::max<index_t>(blocking_.block / unit_, 1) * unit_;
        const std::size_t m = float_bytes(blocking_.panel_group * tiles_.frequencies * m_frequency_stride());
        const std::size_t v = v_bytes(blocking_.groups * tiles_.frequencies * v_frequency_stride(context.images));
        if (blocking_.split) shared_scratch = static_cast<std::size_t>(phases_) * v;
        v_ = m;
        map_ = blocking_.split ? m : arena_round_up(m + v);
        const index_t map = pools_ ? (pixels() + 1) * grid_.tile_cols : 0;
        thread_scratch = map_ + float_bytes(map);
        if (!layer_.is_int8()) return;
        zero_bytes_.assign(static_cast<std::size_t>(depth_), static_cast<std::uint8_t>(layer_.reads->zero_point));
    }

    bool pools() const override { return pools_; }

    int stages() const override { return blocking_.split ? 2 : 1; }

    index_t tasks(int stage, index_t images) const override {
        if (blocking_.split && stage == 0) return images * input_parts();
        return blocks(images) * (blocking_.split ? panel_groups() : group_parts() * blocking_.parts);
    }

    void run(int stage, index_t task, const Wave& wave, void* memory) const override {
        std::byte* const scratch = static_cast<std::byte*>(memory);
        const index_t stride = v_frequency_stride(wave.images);
        if (!blocking_.split) {
            const index_t parts = blocking_.parts, some = task / parts;
            const Range block = tiles_of_block(wave.images, some / group_parts());
            const Range groups = part(layer_.groups, some % group_parts(), group_parts());
            const Range panels = part(grid_.per_group, task % parts, parts);
            std::byte* const v = scratch + v_;
            for (int phase = 0; phase < phases_; ++phase) {
                transform_input(phase, block, block, groups, v, stride, wave);
                for (index_t g = groups.begin; g < groups.end; ++g)
                    multiply(phase, {g * grid_.per_group + panels.begin, g * grid_.per_group + panels.end}, block,
                             v + v_bytes((g - groups.begin) * tiles_.frequencies * stride), stride, wave, scratch);
            }
        } else if (stage == 0) {
            const index_t image = task / input_parts();
            const Range tiles = part(per_image_, task % input_parts(), input_parts());
            const Range some{image * per_image_ + tiles.begin, image * per_image_ + tiles.end};
            // Of one image, but blocks may end within it.
            for (index_t b = 0; b < blocks(wave.images); ++b) {
                const Range block = tiles_of_block(wave.images, b);
                const Range both{std::max(some.begin, block.begin), std::min(some.end, block.end)};
                if (both.begin >= both.end) continue;
                for (int phase = 0; phase < phases_; ++phase)
                    transform_input(phase, block, both, {0, 1}, shared_v(phase, block, wave), stride, wave);
            }
        } else {
            const Range block = tiles_of_block(wave.images, task / panel_groups());
            const Range panels = part(grid_.total, task % panel_groups(), panel_groups());
            for (int phase = 0; phase < phases_; ++phase)
                multiply(phase, panels, block, shared_v(phase, block, wave), stride, wave, scratch);
        }
    }

  private:
    static constexpr index_t kInputTiles = 4;  // per task of the split form's first stage

    // In the order that makes the tiles which need a product contiguous: those of the last row's kind may do without
    // some rows of products, those of the last column's kind without some columns.
    void make_classes() {
        const index_t rows = tiles_.rows - (tiles_.edge_row ? 1 : 0), cols = tiles_.cols - (tiles_.edge_col ? 1 : 0);
        const Range whole_rows{0, rows}, last_row{rows, tiles_.rows}, whole_cols{0, cols}, last_col{cols, tiles_.cols};
        index_t before = 0;
        for (TileClass c :
             {TileClass{last_row, whole_cols, tiles_.edge_row, 0, 0}, TileClass{whole_rows, whole_cols, 0, 0, 0},
              TileClass{whole_rows, last_col, 0, tiles_.edge_col, 0},
              TileClass{last_row, last_col, tiles_.edge_row, tiles_.edge_col, 0}}) {
            if (c.size() == 0) continue;
            c.before = before;
            before += c.size();
            classes_.push_back(c);
        }
    }

    index_t input_parts() const { return ceil_div(per_image_, kInputTiles); }
    index_t blocks(index_t images) const { return ceil_div(images * per_image_, blocking_.block); }
    Range tiles_of_block(index_t images, index_t i) const {
        const Range range = part(images * per_image_ / unit_, i, blocks(images));
        return {range.begin * unit_, range.end * unit_};
    }
    index_t group_parts() const { return ceil_div(layer_.groups, blocking_.groups); }
    index_t panel_groups() const { return ceil_div(grid_.total, blocking_.panel_group); }
    index_t m_frequency_stride() const { return blocking_.block * grid_.tile_cols + kPad; }
    index_t v_frequency_stride(index_t images) const {
        return (blocking_.split ? images * per_image_ : blocking_.block) * depth_ + kPad;
    }

    std::size_t v_bytes(index_t operands) const { return static_cast<std::size_t>(operands * kernels_.operand_bytes); }

    // Of the split form's V, a block of tiles.
    std::byte* shared_v(int phase, Range block, const Wave& wave) const {
        return static_cast<std::byte*>(wave.shared) +
               v_bytes(phase * tiles_.frequencies * v_frequency_stride(wave.images) + block.begin * depth_);
    }

    // The tiles of a block that need product f of a phase, as positions in the block. Where tiles are of several
    // classes, a block holds the first class of all of its images, then the second, and so on.
    Range tiles_with_product(Range block, int phase, index_t f) const {
        const WinogradPoints& rows = kernels_.kind_points[phase / 2];
        const WinogradPoints& cols = kernels_.kind_points[phase % 2];
        const index_t row = f / kernels_.points, col = f % kernels_.points;
        const auto needs = [&](const TileClass& c) {
            return (rows[static_cast<std::size_t>(c.row_kind)] >> row & 1u) &&
                   (cols[static_cast<std::size_t>(c.col_kind)] >> col & 1u);
        };
        if (classes_.size() == 1) return {0, needs(classes_[0]) ? block.size() : 0};
        const index_t images = block.size() / per_image_;
        Range range{block.size(), 0};
        for (const TileClass& c : classes_)
            if (needs(c)) {
                range.begin = std::min(range.begin, images * c.before);
                range.end = std::max(range.end, images * (c.before + c.size()));
            }
        return range;
    }

    // Calls f(image, class, first tile in the class, tiles, position in the block) for every run of tiles of `some`,
    // tiles of the block counted class by class in each image.
    template <class F>
    void for_each_run(Range block, Range some, F f) const {
        const index_t images = block.size() / per_image_;
        for (index_t t = some.begin; t < some.end;) {
            const index_t image = t / per_image_, in_image = t % per_image_;
            const TileClass* c = &classes_.back();
            while (c->before > in_image) --c;
            const index_t first = in_image - c->before, count = std::min(c->size() - first, some.end - t);
            const index_t position = classes_.size() == 1
                                         ? t - block.begin
                                         : images * c->before + (image - block.begin / per_image_) * c->size() + first;
            f(image, *c, first, count, position);
            t += count;
        }
    }

    auto input_transforms(const Wave& wave) const {
        return layer_.is_int8() ? wave.kernels.int8.winograd_transforms.input
                                : reads(wave).winograd[kernels_.number].input;
    }

    void transform_input(int phase, Range block, Range some, Range groups, std::byte* v, index_t stride,
                         const Wave& wave) const {
        const index_t pitch = kernels_.tile * kernels_.stride;
        for_each_run(block, some, [&](index_t image, const TileClass& c, index_t first, index_t count, index_t to) {
            ImageView view = image_view(wave.tensors[layer_.input], image, in_);
            view.data = element_at(view.data, groups.begin * layer_.group_in(), wave.tensors[layer_.input].type);
            input_transforms(wave)[c.row_kind][c.col_kind](
                {.image = view,
                 .channels = depth_,
                 .groups = groups.size(),
                 .pad_top = layer_.window.pad_top - c.rows.begin * pitch,
                 .pad_left = layer_.window.pad_left - c.cols.begin * pitch,
                 .tiles_per_row = c.cols.size(),
                 .first_tile = first,
                 .tiles = count,
                 .phase = phase,
                 .v = v + v_bytes(to * depth_),
                 .group_stride = tiles_.frequencies * stride,
                 .frequency_stride = stride,
                 .zeros = layer_.is_int8() ? static_cast<const void*>(zero_bytes_.data()) : wave.zeros});
        });
    }

    // Panel by panel and frequency by frequency, V * U of one phase, and behind the last one the output transform.
    void multiply(int phase, Range panels, Range block, const std::byte* v, index_t stride, const Wave& wave,
                  std::byte* scratch) const {
        index_t begin[kMostFrequencies], end[kMostFrequencies], matrix[kMostFrequencies];
        const index_t side = kernels_.weight_points;
        for (index_t f = 0; f < tiles_.frequencies; ++f) {
            const Range tiles = tiles_with_product(block, phase, f);
            begin[f] = tiles.begin;
            end[f] = tiles.end;
            // The products of an odd phase share the last row or column.
            matrix[f] = (phase / 2 == 1 ? side - 1 : f / kernels_.points) * side +
                        (phase % 2 == 1 ? side - 1 : f % kernels_.points);
        }
        for (index_t p = panels.begin; p < panels.end; ++p) {
            float* const m = reinterpret_cast<float*>(scratch) +
                             (p - panels.begin) % blocking_.panel_group * tiles_.frequencies * m_frequency_stride();
            const auto products =
                layer_.is_int8() ? wave.kernels.int8.winograd_products : wave.kernels.winograd_products;
            products({.v = v,
                      .v_frequency = stride,
                      .weights = static_cast<const std::byte*>(wave.weights.packed(index_, algorithm_)) +
                                 v_bytes(p * side * side * depth_ * grid_.tile_cols),
                      .matrix = matrix,
                      .m = m,
                      .m_frequency = m_frequency_stride(),
                      .frequencies = tiles_.frequencies,
                      .depth = depth_,
                      .cols = grid_.cols(p),
                      .begin = begin,
                      .end = end,
                      .chunk = kernels_.chunk,
                      .accumulate = phase > 0});
            if (phase + 1 == phases_) transform_output(p, block, m, reinterpret_cast<float*>(scratch + map_), wave);
        }
    }

    void transform_output(index_t panel, Range block, const float* m, float* map, const Wave& wave) const {
        const index_t channel = grid_.channel(panel), cols = grid_.cols(panel);
        const Tensor& y = wave.tensors[pools_ ? pooled_->output : layer_.output];
        for_each_run(block, block, [&](index_t image, const TileClass& c, index_t first, index_t count, index_t from) {
            void* const to = y.at(image * y.image + channel);
            const Residual residual = residual_at(wave, layer_, image, 0, channel);
            const WinogradOutputArgs args{.m = m + from * grid_.tile_cols,
                                          .frequency_stride = m_frequency_stride(),
                                          .tile_stride = grid_.tile_cols,
                                          .y = pools_ ? static_cast<void*>(map) : to,
                                          .height = out_.h,
                                          .width = out_.w,
                                          .pixel = pools_ ? grid_.tile_cols : y.pixel,
                                          .residual_pixel = residual.pixel,
                                          .cols = cols,
                                          .y0 = c.rows.begin * kernels_.tile,
                                          .x0 = c.cols.begin * kernels_.tile,
                                          .tiles_per_row = c.cols.size(),
                                          .first_tile = first,
                                          .tiles = count,
                                          .bias = bias(wave, panel * grid_.tile_cols),
                                          .residual = residual.data,
                                          .floor = activation_floor(layer_.activation)};
            if (layer_.is_int8()) {
                wave.kernels.int8.winograd_transforms.output[c.row_kind][c.col_kind](
                    {.tiles = args,
                     .centre = wave.weights.centre(index_) + panel * grid_.tile_cols,
                     .offset = wave.weights.offset(index_) + panel * grid_.tile_cols,
                     .scale = scale(wave, panel * grid_.tile_cols),
                     .epilogue = int8_epilogue_});
            } else {
                writes(wave).winograd[kernels_.number].output[c.row_kind][c.col_kind](args);
            }
            if (activates_apart(layer_)) activate_tiles(args, panel * grid_.tile_cols, wave);
            // The last class completes the image.
            if (pools_ && &c == &classes_.back()) {
                const index_t floats = pixels() * grid_.tile_cols;
                pool_pixels(wave.fp32(), wave.kernels_of(pooled_->output), {map, 1, pixels(), floats, grid_.tile_cols},
                            DType::fp32, 0, cols, map + floats, to);
            }
        });
    }

    // Of one run of tiles, while they are in cache; `at` is their panel's first column.
    void activate_tiles(const WinogradOutputArgs& g, index_t at, const Wave& wave) const {
        const index_t tile = kernels_.tile;
        for (index_t t = g.first_tile; t < g.first_tile + g.tiles;) {
            const index_t row = t / g.tiles_per_row, col = t % g.tiles_per_row;
            const index_t count = std::min(g.tiles_per_row - col, g.first_tile + g.tiles - t);
            const index_t x = g.x0 + col * tile, end_x = std::min(x + count * tile, g.width);
            const index_t y = g.y0 + row * tile, end_y = std::min(y + tile, g.height);
            for (index_t line = y; line < end_y; ++line)
                writes(wave).activate({activation(wave, at),
                                       element_at(g.y, (line * g.width + x) * g.pixel, layer_.type), end_x - x, g.pixel,
                                       g.cols});
            t += count;
        }
    }

    const WinogradKernels& kernels_;
    WinogradTiles tiles_;
    index_t per_image_;
    index_t depth_;  // of the products
    int phases_;
    WinogradBlocking blocking_;
    const Layer* pooled_;  // the global average pool behind, or null
    bool pools_;
    index_t unit_;  // blocks are multiples of so many tiles
    std::vector<TileClass> classes_;
    std::size_t v_ = 0;  // where V is in the thread's scratch, of the fused form
    // Of bytes.
    std::vector<std::uint8_t> zero_bytes_;  // as many as a pixel has
    std::size_t map_ = 0;                   // offset of one panel's feature map, to be pooled, in the thread's scratch
};

}  // namespace

std::unique_ptr<Step> make_winograd_step(const StepContext& context, std::size_t layer, const ConvAlgorithm& algorithm,
                                         const WinogradKernels& winograd) {
    return std::make_unique<WinogradStep>(context, layer, algorithm, winograd);
}

}  // namespace resfuse
