// Arguments of copies.
#pragma once

#include "kernels/types.h"

namespace resfuse {

// Copies, to fp32 or as they are, rows [y0, y0 + rows) x columns [x0, x0 + cols) of a strided image into an NHWC band,
// row behind row; what lies outside the image becomes `fill`.
struct BandArgs {
    const void* image;
    index_t height;
    index_t width;
    index_t channels;
    index_t stride_h;
    index_t stride_w;
    index_t stride_c;
    index_t y0;
    index_t rows;
    index_t x0;
    index_t cols;
    void* band;
    index_t pixel;  // elements between pixels of the band
};

// y[col * y_pitch + row] = x[row * pitch + col]
struct TransposeArgs {
    const void* x;
    index_t rows, cols, pitch;
    void* y;
    index_t y_pitch;
};

// Rows of channels, as fp32, into panels of tile_cols columns, zeros past the last channel.
struct PackRowsArgs {
    const void* x;
    index_t pixel;  // elements between rows
    index_t rows, channels;
    float* panels;
    index_t panel_stride;
};

// Windows of `pixels` output pixels, each `rows` runs of `run` contiguous elements, one after the other in `to`.
struct CopyWindowsArgs {
    const void* x;
    index_t pixel;  // elements between windows
    index_t row;    // between the runs of one
    index_t pixels, rows, run;
    void* to;
    index_t pitch;  // elements between windows in `to`
};

// Windows of a band, each some runs of bytes, as rows of `padded_bytes`: run behind run, then zeros. A line behind the
// band is read.
struct JoinWindowsArgs {
    const void* band;
    index_t windows, window_bytes;  // from one to the next
    index_t runs, run_bytes;
    index_t row_bytes;  // from one run to the next
    void* to;
    index_t padded_bytes;
};

}  // namespace resfuse
