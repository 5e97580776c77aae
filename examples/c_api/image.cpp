#include "image.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <stdexcept>

#ifdef HAVE_JPEG
#include <jpeglib.h>
#endif

namespace {

constexpr int kMostPixels = 1 << 28;

Image sized(int height, int width) {
    if (height <= 0 || width <= 0 || height > kMostPixels / width)
        throw std::runtime_error("image of no sensible size");
    return {height, width, std::vector<float>(static_cast<std::size_t>(height) * static_cast<std::size_t>(width) * 3)};
}

int read_number(std::istream& file) {
    while (file >> std::ws && file.peek() == '#') file.ignore(4096, '\n');
    int number = 0;
    if (!(file >> number)) throw std::runtime_error("broken PPM header");
    return number;
}

Image read_ppm(std::istream& file) {
    const int width = read_number(file), height = read_number(file);
    if (read_number(file) != 255) throw std::runtime_error("want a PPM of 255 levels");
    file.get();
    Image image = sized(height, width);
    std::vector<char> bytes(image.rgb.size());
    if (!file.read(bytes.data(), static_cast<std::streamsize>(bytes.size())))
        throw std::runtime_error("PPM ends too early");
    for (std::size_t i = 0; i < bytes.size(); ++i) image.rgb[i] = static_cast<unsigned char>(bytes[i]);
    return image;
}

#ifdef HAVE_JPEG
Image read_jpeg(const std::string& path) {
    std::FILE* const file = std::fopen(path.c_str(), "rb");
    if (file == nullptr) throw std::runtime_error(path + ": cannot be read");
    jpeg_decompress_struct jpeg;
    jpeg_error_mgr errors;
    jpeg.err = jpeg_std_error(&errors);
    errors.error_exit = [](j_common_ptr common) {
        char text[JMSG_LENGTH_MAX];
        common->err->format_message(common, text);
        throw std::runtime_error(text);
    };
    jpeg_create_decompress(&jpeg);
    try {
        jpeg_stdio_src(&jpeg, file);
        jpeg_read_header(&jpeg, TRUE);
        jpeg.out_color_space = JCS_RGB;
        jpeg_start_decompress(&jpeg);
        Image image = sized(static_cast<int>(jpeg.output_height), static_cast<int>(jpeg.output_width));
        std::vector<unsigned char> row(static_cast<std::size_t>(image.width) * 3);
        for (float* to = image.rgb.data(); jpeg.output_scanline < jpeg.output_height; to += row.size()) {
            unsigned char* rows[] = {row.data()};
            jpeg_read_scanlines(&jpeg, rows, 1);
            std::copy(row.begin(), row.end(), to);
        }
        jpeg_finish_decompress(&jpeg);
        jpeg_destroy_decompress(&jpeg);
        std::fclose(file);
        return image;
    } catch (...) {
        jpeg_destroy_decompress(&jpeg);
        std::fclose(file);
        throw;
    }
}
#endif

// A triangle filter, as wide as an output pixel, as Pillow's BILINEAR is.
std::vector<float> resampled(const std::vector<float>& from, int rows, int length, int channels, int to) {
    const double scale = static_cast<double>(length) / to, support = std::max(scale, 1.0);
    std::vector<float> out(static_cast<std::size_t>(rows) * static_cast<std::size_t>(to * channels));
    for (int x = 0; x < to; ++x) {
        const double centre = (x + 0.5) * scale;
        const int first = std::max(0, static_cast<int>(centre - support + 0.5));
        const int last = std::min(length, static_cast<int>(centre + support + 0.5));
        double sum = 0.0;
        std::vector<double> weights;
        for (int i = first; i < last; ++i) {
            weights.push_back(std::max(0.0, 1.0 - std::fabs((i + 0.5 - centre) / support)));
            sum += weights.back();
        }
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < channels; ++c) {
                double value = 0.0;
                for (int i = first; i < last; ++i)
                    value += weights[static_cast<std::size_t>(i - first)] *
                             from[static_cast<std::size_t>((r * length + i) * channels + c)];
                out[static_cast<std::size_t>((r * to + x) * channels + c)] = static_cast<float>(value / sum);
            }
    }
    return out;
}

Image transposed(const Image& image) {
    Image out = sized(image.width, image.height);
    for (int y = 0; y < image.height; ++y)
        for (int x = 0; x < image.width; ++x)
            std::copy_n(&image.rgb[static_cast<std::size_t>((y * image.width + x) * 3)], 3,
                        &out.rgb[static_cast<std::size_t>((x * image.height + y) * 3)]);
    return out;
}

Image scaled(const Image& image, int height, int width) {
    Image wide = sized(image.height, width);
    wide.rgb = resampled(image.rgb, image.height, image.width, 3, width);
    const Image turned = transposed(wide);
    Image tall = sized(width, height);
    tall.rgb = resampled(turned.rgb, width, image.height, 3, height);
    return transposed(tall);
}

}  // namespace

Image read_image(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    char magic[2] = {};
    if (!file.read(magic, 2)) throw std::runtime_error(path + ": cannot be read");
    if (magic[0] == 'P' && magic[1] == '6') return read_ppm(file);
#ifdef HAVE_JPEG
    if (magic[0] == '\xff' && magic[1] == '\xd8') return read_jpeg(path);
#endif
    throw std::runtime_error(path + ": want a PPM (P6) or, where libjpeg is, a JPEG");
}

std::vector<float> prepare(const Image& image, const resfuse_preprocessing& p) {
    if (p.channels != 3) throw std::runtime_error("the model takes no RGB images");
    const int shorter = std::min(image.height, image.width), resize = static_cast<int>(p.resize);
    const auto side = [&](int length) {
        return length == shorter ? resize : static_cast<int>(static_cast<double>(length) * resize / shorter);
    };
    const Image small = scaled(image, side(image.height), side(image.width));
    const int top = static_cast<int>(std::nearbyint((small.height - static_cast<int>(p.height)) / 2.0));
    const int left = static_cast<int>(std::nearbyint((small.width - static_cast<int>(p.width)) / 2.0));
    std::vector<float> x;
    for (int c = 0; c < 3; ++c)
        for (int i = 0; i < p.height; ++i)
            for (int j = 0; j < p.width; ++j) {
                const float pixel = small.rgb[static_cast<std::size_t>(((top + i) * small.width + left + j) * 3 + c)];
                x.push_back(static_cast<float>((std::nearbyint(pixel) / 255.0 - p.mean[c]) / p.std[c]));
            }
    return x;
}
