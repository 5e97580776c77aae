/* What a model takes and returns, and a run on zeros, in C.  run_zeros MODEL [HEIGHT WIDTH] */
#include <resfuse.h>
#include <stdio.h>
#include <stdlib.h>

static int failed(const char* what) {
    fprintf(stderr, "%s: %s\n", what, resfuse_last_error());
    return 1;
}

static size_t size_of(const resfuse_tensor* tensor) {
    size_t size = 1;
    for (int d = 0; d < tensor->ndim; ++d) size *= (size_t)tensor->shape[d];
    return size;
}

static void print(const char* name, const resfuse_tensor* tensor) {
    printf("%s: [", name);
    for (int d = 0; d < tensor->ndim; ++d) printf("%s%lld", d ? ", " : "", (long long)tensor->shape[d]);
    printf("]\n");
}

int main(int argc, char** argv) {
    resfuse_model* model;
    resfuse_tensor inputs[4] = {0}, outputs[8] = {0};
    if (argc < 2) {
        fprintf(stderr, "usage: run_zeros MODEL [HEIGHT WIDTH]\n");
        return 2;
    }
    if (resfuse_load(argv[1], 0, &model) != RESFUSE_OK) return failed("load");
    printf("resfuse %s, %s, %d threads\n", resfuse_version(), resfuse_isa(), resfuse_threads(model));
    const size_t input_count = resfuse_input_count(model), output_count = resfuse_output_count(model);
    if (input_count > 4 || output_count > 8) return 2;
    for (size_t i = 0; i < input_count; ++i) {
        resfuse_tensor* const x = &inputs[i];
        if (resfuse_input_shape(model, i, x->shape) != RESFUSE_OK) return failed("input_shape");
        const int64_t other[4] = {1, 0, argc > 3 ? atoll(argv[2]) : 224, argc > 3 ? atoll(argv[3]) : 224};
        for (int d = 0; d < 4; ++d)
            if (x->shape[d] < 0) x->shape[d] = other[d];
        x->dtype = RESFUSE_FLOAT32;
        x->ndim = 4;
        x->strides[3] = 1;
        for (int d = 2; d >= 0; --d) x->strides[d] = x->strides[d + 1] * x->shape[d + 1];
        x->data = calloc(size_of(x), sizeof(float));
        print(resfuse_input_name(model, i), x);
    }
    if (resfuse_describe_outputs(model, inputs, input_count, outputs, output_count) != RESFUSE_OK)
        return failed("describe_outputs");
    for (size_t o = 0; o < output_count; ++o) outputs[o].data = calloc(size_of(&outputs[o]), sizeof(int64_t));
    if (resfuse_run(model, inputs, input_count, outputs, output_count) != RESFUSE_OK) return failed("run");
    for (size_t o = 0; o < output_count; ++o) print(resfuse_output_name(model, o), &outputs[o]);
    for (size_t i = 0; i < input_count; ++i) free(inputs[i].data);
    for (size_t o = 0; o < output_count; ++o) free(outputs[o].data);
    resfuse_free(model);
    return 0;
}
