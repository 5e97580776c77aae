#include "capi/resfuse.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "deploy/model.h"
#include "machine/threads.h"

using namespace resfuse;

struct resfuse_model {
    Model model;
    resfuse_model(const char* path, int threads)
        : model(path, threads > 0 ? threads : std::min(default_threads(), RESFUSE_MAX_THREADS)) {}
};

namespace {

static_assert(RESFUSE_FLOAT32 == static_cast<int>(StoredType::fp32) &&
              RESFUSE_BFLOAT16 == static_cast<int>(StoredType::bf16) &&
              RESFUSE_FLOAT16 == static_cast<int>(StoredType::fp16) &&
              RESFUSE_INT64 == static_cast<int>(StoredType::s64));

thread_local std::string last_error;

resfuse_status failed(resfuse_status status, const char* text) noexcept {
    try {
        last_error = text;
    } catch (...) {
        last_error.clear();
    }
    return status;
}

// No exception leaves the library.
template <class F>
resfuse_status guarded(F call) noexcept {
    try {
        call();
        return RESFUSE_OK;
    } catch (const std::invalid_argument& error) {
        return failed(RESFUSE_INVALID_ARGUMENT, error.what());
    } catch (const std::length_error& error) {  // a vector of more than can be
        return failed(RESFUSE_OUT_OF_MEMORY, error.what());
    } catch (const std::runtime_error& error) {
        return failed(RESFUSE_IO_ERROR, error.what());
    } catch (const std::bad_alloc&) {
        return failed(RESFUSE_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception& error) {
        return failed(RESFUSE_ERROR, error.what());
    } catch (...) {
        return failed(RESFUSE_ERROR, "unknown error");
    }
}

void require(bool condition, const std::string& text) {
    if (!condition) throw std::invalid_argument(text);
}

std::vector<StoredTensor> read_tensors(const resfuse_tensor* tensors, std::size_t count, const char* what) {
    require(tensors != nullptr || count == 0, std::string(what) + ": got a null pointer");
    std::vector<StoredTensor> list;
    for (std::size_t i = 0; i < count; ++i) {
        const resfuse_tensor& t = tensors[i];
        const std::string name = std::string(what) + "[" + std::to_string(i) + "]";
        require(t.ndim >= 0 && t.ndim <= RESFUSE_MAX_DIMS,
                name + ": ndim: got " + std::to_string(t.ndim) + ", want 0 to " + std::to_string(RESFUSE_MAX_DIMS));
        require(t.dtype >= 0 && t.dtype < kStoredTypes, name + ": dtype: got " + std::to_string(t.dtype));
        list.push_back(
            {t.data, static_cast<StoredType>(t.dtype), {t.shape, t.shape + t.ndim}, {t.strides, t.strides + t.ndim}});
    }
    return list;
}

template <class List>
auto at(const List& list, std::size_t index) -> decltype(&list[0]) {
    return index < list.size() ? &list[index] : nullptr;
}

}  // namespace

const char* resfuse_version(void) { return RESFUSE_VERSION; }
int resfuse_abi_version(void) { return RESFUSE_ABI_VERSION; }
const char* resfuse_last_error(void) { return last_error.c_str(); }

const char* resfuse_isa(void) {
    const char* name = "";
    guarded([&] { name = isa_name(active_isa()); });
    return name;
}

resfuse_status resfuse_load(const char* path, int threads, resfuse_model** model) {
    return guarded([&] {
        require(path != nullptr, "path: got a null pointer");
        require(model != nullptr, "model: got a null pointer");
        require(threads >= 0 && threads <= RESFUSE_MAX_THREADS,
                "threads: got " + std::to_string(threads) + ", want 0 to " + std::to_string(RESFUSE_MAX_THREADS));
        *model = nullptr;
        *model = std::make_unique<resfuse_model>(path, threads).release();
    });
}

void resfuse_free(resfuse_model* model) { delete model; }

int resfuse_threads(const resfuse_model* model) { return model->model.threads(); }
resfuse_dtype resfuse_model_dtype(const resfuse_model* model) {
    return static_cast<resfuse_dtype>(model->model.type());
}
size_t resfuse_input_count(const resfuse_model* model) { return model->model.inputs().size(); }
size_t resfuse_output_count(const resfuse_model* model) { return model->model.outputs().size(); }

const char* resfuse_input_name(const resfuse_model* model, size_t index) {
    const ModelInput* const input = at(model->model.inputs(), index);
    return input == nullptr ? nullptr : input->name.c_str();
}

const char* resfuse_output_name(const resfuse_model* model, size_t index) {
    const ModelOutput* const output = at(model->model.outputs(), index);
    return output == nullptr ? nullptr : output->name.c_str();
}

resfuse_status resfuse_input_shape(const resfuse_model* model, size_t index, int64_t shape[RESFUSE_MAX_DIMS]) {
    return guarded([&] {
        const ModelInput* const input = at(model->model.inputs(), index);
        require(input != nullptr, "index: got " + std::to_string(index) + ", want less than " +
                                      std::to_string(model->model.inputs().size()));
        shape[0] = -1;
        shape[1] = input->channels;
        shape[2] = input->size ? input->size->h : -1;
        shape[3] = input->size ? input->size->w : -1;
    });
}

resfuse_status resfuse_get_preprocessing(const resfuse_model* model, resfuse_preprocessing* preprocessing) {
    return guarded([&] {
        const auto& found = model->model.preprocessing();
        require(found.has_value(), "preprocessing: the file does not tell");
        *preprocessing = {found->height,
                          found->width,
                          found->resize,
                          static_cast<int32_t>(found->mean.size()),
                          found->mean.data(),
                          found->std.data(),
                          found->interpolation.c_str()};
    });
}

size_t resfuse_label_count(const resfuse_model* model) { return model->model.labels().size(); }
const char* resfuse_label(const resfuse_model* model, size_t index) {
    const std::string* const label = at(model->model.labels(), index);
    return label == nullptr ? nullptr : label->c_str();
}

resfuse_status resfuse_describe_outputs(resfuse_model* model, const resfuse_tensor* inputs, size_t input_count,
                                        resfuse_tensor* outputs, size_t output_count) {
    return guarded([&] {
        std::vector<StoredTensor> given = read_tensors(inputs, input_count, "inputs");
        static const std::int64_t some = 0;
        for (StoredTensor& tensor : given) tensor.data = &some;  // not read
        require(outputs != nullptr || output_count == 0, "outputs: got a null pointer");
        require(
            output_count == model->model.outputs().size(),
            "outputs: got " + std::to_string(output_count) + ", want " + std::to_string(model->model.outputs().size()));
        const std::vector<StoredTensor> described = model->model.describe(given);
        for (std::size_t o = 0; o < output_count; ++o) {
            const StoredTensor& tensor = described[o];
            outputs[o].dtype = static_cast<int32_t>(tensor.type);
            outputs[o].ndim = static_cast<int32_t>(tensor.shape.size());
            std::copy(tensor.shape.begin(), tensor.shape.end(), outputs[o].shape);
            std::copy(tensor.strides.begin(), tensor.strides.end(), outputs[o].strides);
        }
    });
}

resfuse_status resfuse_run(resfuse_model* model, const resfuse_tensor* inputs, size_t input_count,
                           const resfuse_tensor* outputs, size_t output_count) {
    return guarded([&] {
        require(model != nullptr, "model: got a null pointer");
        model->model.run(read_tensors(inputs, input_count, "inputs"), read_tensors(outputs, output_count, "outputs"));
    });
}
