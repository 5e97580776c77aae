#include "norm/batch_norm.h"

#include <algorithm>

#include "machine/threads.h"
#include "plan/step.h"

namespace resfuse {

namespace {

constexpr index_t kMostParts = 64;
constexpr index_t kPartFloats = 1 << 16;  // at least
constexpr index_t kPartRows = 16;         // likewise
constexpr index_t kSerialFloats = 1 << 14;

index_t parts_of(Pixels pixels) {
    const index_t most = std::min(pixels.rows / kPartRows, pixels.rows * pixels.channels / kPartFloats);
    return std::clamp<index_t>(most, 1, kMostParts);
}

template <class F>
void for_each_part(Pixels pixels, index_t parts, int threads, F run) {
#pragma omp parallel for num_threads(usable_threads(threads)) \
    schedule(static) if (pixels.rows * pixels.channels >= kSerialFloats)
    for (index_t p = 0; p < parts; ++p) {
        const FlushDenormals flush;
        run(p, part(pixels.rows, p, parts));
    }
}

// The total of `sum_part(rows, scratch, sums)` over all parts: two doubles per channel.
template <class F>
std::vector<double> total(Pixels pixels, int threads, F sum_part) {
    const index_t parts = parts_of(pixels), width = 2 * pixels.channels;
    std::vector<double> sums(static_cast<std::size_t>(parts * width));
    std::vector<float> scratch(static_cast<std::size_t>(parts * width));
    for_each_part(pixels, parts, threads,
                  [&](index_t p, Range rows) { sum_part(rows, scratch.data() + p * width, sums.data() + p * width); });
    for (index_t p = 1; p < parts; ++p)
        for (index_t i = 0; i < width; ++i)
            sums[static_cast<std::size_t>(i)] += sums[static_cast<std::size_t>(p * width + i)];
    sums.resize(static_cast<std::size_t>(width));
    return sums;
}

}  // namespace

void norm_statistics(const KernelTable& kernels, const void* x, Pixels pixels, float* mean, float* variance,
                     int threads) {
    const ElementKernels& elements = kernels_of(kernels, pixels.type);
    const index_t channels = pixels.channels;
    // The first pixel is within a few deviations of the mean, mostly.
    std::vector<float> shift(static_cast<std::size_t>(channels));
    elements.copy_band({.image = x,
                        .height = 1,
                        .width = 1,
                        .channels = channels,
                        .stride_c = 1,
                        .rows = 1,
                        .cols = 1,
                        .band = shift.data(),
                        .pixel = channels});
    const std::vector<double> sums = total(pixels, threads, [&](Range rows, float* scratch, double* part_sums) {
        elements.norm_sums({element_at(x, rows.begin * channels, pixels.type), channels, rows.size(), channels,
                            shift.data(), scratch, part_sums});
    });
    const double count = static_cast<double>(pixels.rows);
    for (index_t c = 0; c < channels; ++c) {
        const double offset = sums[static_cast<std::size_t>(c)] / count;
        const double square = sums[static_cast<std::size_t>(channels + c)] / count;
        mean[c] = static_cast<float>(static_cast<double>(shift[static_cast<std::size_t>(c)]) + offset);
        variance[c] = static_cast<float>(std::max(square - offset * offset, 0.0));
    }
}

void norm_forward(const KernelTable& kernels, const void* x, const void* residual, Pixels pixels, const float* mean,
                  const float* scale, const float* bias, bool relu, void* y, int threads) {
    const float floor = activation_floor(relu ? Activation::relu : Activation::none);
    for_each_part(pixels, parts_of(pixels), threads, [&](index_t, Range rows) {
        const auto at = [&](auto* data) { return element_at(data, rows.begin * pixels.channels, pixels.type); };
        kernels_of(kernels, pixels.type)
            .norm_apply({.x = at(x),
                         .x_pixel = pixels.channels,
                         .product = nullptr,
                         .product_pixel = 0,
                         .residual = residual ? at(residual) : nullptr,
                         .residual_pixel = pixels.channels,
                         .rows = rows.size(),
                         .channels = pixels.channels,
                         .mean = mean,
                         .scale = scale,
                         .bias = bias,
                         .floor = floor,
                         .y = at(y),
                         .y_pixel = pixels.channels});
    });
}

// With g the gradient behind the ReLU, n pixels and d the inverse deviation: dbias = sum g, dweight = d sum g (x -
// mean), dx = weight d (g - dbias / n - (x - mean) d dweight / n) (the paper's section 3, with the sums written out).
void norm_backward(const KernelTable& kernels, const NormBackward& g, Pixels pixels, int threads) {
    const ElementKernels& elements = kernels_of(kernels, pixels.type);
    const index_t channels = pixels.channels;
    const auto rows_at = [&](auto* data, Range rows) {
        return data ? element_at(data, rows.begin * channels, pixels.type) : nullptr;
    };
    const auto rows_of = [&](Range rows) {
        return NormGrad{.grad = rows_at(g.grad, rows),
                        .y = rows_at(g.y, rows),
                        .scale = g.scale,
                        .bias = g.bias,
                        .x = rows_at(g.x, rows),
                        .mean = g.mean,
                        .rows = rows.size(),
                        .channels = channels};
    };
    const std::vector<double> sums = total(pixels, threads, [&](Range rows, float* scratch, double* part_sums) {
        elements.norm_grad_sums({rows_of(rows), scratch, part_sums});
    });
    std::vector<float> coefficients(static_cast<std::size_t>(3 * channels));
    float* const of_grad = coefficients.data();
    float* const of_x = of_grad + channels;
    float* const constant = of_x + channels;
    const double count = static_cast<double>(pixels.rows);
    for (index_t c = 0; c < channels; ++c) {
        const double inverse = static_cast<double>(g.inverse_deviation[c]);
        const double dbias = sums[static_cast<std::size_t>(c)];
        const double dweight = inverse * sums[static_cast<std::size_t>(channels + c)];
        const double scale = inverse * (g.weight ? static_cast<double>(g.weight[c]) : 1.0);
        if (g.dbias) g.dbias[c] = static_cast<float>(dbias);
        if (g.dweight) g.dweight[c] = static_cast<float>(dweight);
        of_grad[c] = static_cast<float>(scale);
        of_x[c] = g.batch_statistics ? static_cast<float>(-scale * inverse * dweight / count) : 0.0f;
        constant[c] = g.batch_statistics ? static_cast<float>(-scale * dbias / count) : 0.0f;
    }
    for_each_part(pixels, parts_of(pixels), threads, [&](index_t, Range rows) {
        elements.norm_grad({rows_of(rows), of_grad, of_x, constant, rows_at(g.dx, rows), rows_at(g.dresidual, rows)});
    });
}

}  // namespace resfuse
