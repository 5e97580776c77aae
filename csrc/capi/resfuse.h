/* resfuse's runtime: models that resfuse.save has written, from C. No Python and no torch.
 *
 * Every function that can fail returns a resfuse_status; resfuse_last_error() then tells, in the same thread, what was
 * wrong. A model may be used by several threads at once. Structures and functions of this header stay as they are
 * within one RESFUSE_ABI_VERSION; new ones may join them. */
#ifndef RESFUSE_H
#define RESFUSE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RESFUSE_ABI_VERSION 1
#define RESFUSE_MAX_DIMS 4
#define RESFUSE_MAX_THREADS 1024

#if defined(__GNUC__)
#define RESFUSE_API __attribute__((visibility("default")))
#else
#define RESFUSE_API
#endif

typedef struct resfuse_model resfuse_model;

typedef enum resfuse_status {
    RESFUSE_OK = 0,
    RESFUSE_INVALID_ARGUMENT = 1, /* a value that cannot be, or a file that holds no model */
    RESFUSE_IO_ERROR = 2,         /* a file that cannot be read */
    RESFUSE_OUT_OF_MEMORY = 3,
    RESFUSE_ERROR = 4 /* anything else */
} resfuse_status;

typedef enum resfuse_dtype {
    RESFUSE_FLOAT32 = 0,
    RESFUSE_BFLOAT16 = 2,
    RESFUSE_FLOAT16 = 3,
    RESFUSE_INT64 = 6
} resfuse_dtype;

/* Memory of the caller's: element (i, j, ...) is `i * strides[0] + j * strides[1] + ...` elements behind `data`. */
typedef struct resfuse_tensor {
    void* data;
    int32_t dtype; /* a resfuse_dtype */
    int32_t ndim;
    int64_t shape[RESFUSE_MAX_DIMS];
    int64_t strides[RESFUSE_MAX_DIMS]; /* in elements */
} resfuse_tensor;

/* The images that a model takes: the shorter side is scaled to `resize`, the middle of height x width is kept, and a
 * pixel p, from 0 to 1, of channel c becomes (p - mean[c]) / std[c]. */
typedef struct resfuse_preprocessing {
    int64_t height, width, resize;
    int32_t channels;
    const double *mean, *std;  /* the model's, as many as channels */
    const char* interpolation; /* "bilinear" or "bicubic" */
} resfuse_preprocessing;

/* The version of the library, "0.1.0", and of the ABI that it has. */
RESFUSE_API const char* resfuse_version(void);
RESFUSE_API int resfuse_abi_version(void);

/* The instruction set in use: the best that the CPU has, or what the environment's RESFUSE_ISA says. */
RESFUSE_API const char* resfuse_isa(void);

/* What went wrong in this thread's last call that failed; "" where none has. Valid until the thread's next call. */
RESFUSE_API const char* resfuse_last_error(void);

/* Reads a model; `threads` 0 takes OMP_NUM_THREADS or one for each core. On success *model is to be freed. */
RESFUSE_API resfuse_status resfuse_load(const char* path, int threads, resfuse_model** model);
RESFUSE_API void resfuse_free(resfuse_model* model);

RESFUSE_API int resfuse_threads(const resfuse_model* model);
RESFUSE_API resfuse_dtype resfuse_model_dtype(const resfuse_model* model); /* that it computes in */
RESFUSE_API size_t resfuse_input_count(const resfuse_model* model);
RESFUSE_API size_t resfuse_output_count(const resfuse_model* model);
/* Names as the model's code has them; NULL for an index that is too large. */
RESFUSE_API const char* resfuse_input_name(const resfuse_model* model, size_t index);
RESFUSE_API const char* resfuse_output_name(const resfuse_model* model, size_t index);
/* [N, C, H, W] of an input, -1 where any length will do. */
RESFUSE_API resfuse_status resfuse_input_shape(const resfuse_model* model, size_t index,
                                               int64_t shape[RESFUSE_MAX_DIMS]);

/* How images are made ready; RESFUSE_INVALID_ARGUMENT where the file does not tell. */
RESFUSE_API resfuse_status resfuse_get_preprocessing(const resfuse_model* model, resfuse_preprocessing* preprocessing);
/* The names of classes, 0 where the file has none; NULL for an index that is too large. */
RESFUSE_API size_t resfuse_label_count(const resfuse_model* model);
RESFUSE_API const char* resfuse_label(const resfuse_model* model, size_t index);

/* Fills in dtype, ndim, shape and contiguous strides of all outputs for these inputs; leaves `data` as it is. Of the
 * inputs data is not read. */
RESFUSE_API resfuse_status resfuse_describe_outputs(resfuse_model* model, const resfuse_tensor* inputs,
                                                    size_t input_count, resfuse_tensor* outputs, size_t output_count);

/* Computes the outputs. Inputs are [N, C, H, W], float32 or of the type that the model computes in, of any strides;
 * outputs of the shapes and types that resfuse_describe_outputs tells, of any strides. */
RESFUSE_API resfuse_status resfuse_run(resfuse_model* model, const resfuse_tensor* inputs, size_t input_count,
                                       const resfuse_tensor* outputs, size_t output_count);

#ifdef __cplusplus
}
#endif

#endif
