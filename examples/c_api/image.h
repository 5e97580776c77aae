// Image files, and how they become a model's input.
#pragma once

#include <resfuse.h>

#include <string>
#include <vector>

struct Image {
    int height = 0, width = 0;
    std::vector<float> rgb;  // [height][width][3], 0 to 255
};

// A binary PPM file (P6) or, where libjpeg was found, a JPEG; throws std::runtime_error.
Image read_image(const std::string& path);

// [3, height, width]: the shorter side scaled, the middle cropped, normalised.
std::vector<float> prepare(const Image& image, const resfuse_preprocessing& preprocessing);
