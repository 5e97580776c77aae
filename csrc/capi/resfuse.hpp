// resfuse.h for C++17: a model that frees itself, and exceptions.
#ifndef RESFUSE_HPP
#define RESFUSE_HPP

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "resfuse.h"

namespace resfuse {

struct Error : std::runtime_error {
    Error(resfuse_status status, const std::string& text) : std::runtime_error(text), status(status) {}
    resfuse_status status;
};

inline void check(resfuse_status status) {
    if (status != RESFUSE_OK) throw Error(status, resfuse_last_error());
}

// Contiguous memory of a shape, float32, that the caller keeps.
inline resfuse_tensor tensor(float* data, const std::vector<std::int64_t>& shape) {
    resfuse_tensor t{data, RESFUSE_FLOAT32, static_cast<std::int32_t>(shape.size()), {}, {}};
    if (shape.size() > RESFUSE_MAX_DIMS) throw Error(RESFUSE_INVALID_ARGUMENT, "shape: got more than 4 dimensions");
    std::int64_t stride = 1;
    for (std::size_t d = shape.size(); d-- > 0;) {
        t.shape[d] = shape[d];
        t.strides[d] = stride;
        stride *= shape[d];
    }
    return t;
}

class Session {
  public:
    // `threads` 0: OMP_NUM_THREADS, or one for each core.
    explicit Session(const std::string& path, int threads = 0) {
        resfuse_model* model = nullptr;
        check(resfuse_load(path.c_str(), threads, &model));
        model_.reset(model);
    }

    resfuse_model* get() const { return model_.get(); }
    // Nothing where the file does not tell.
    std::unique_ptr<resfuse_preprocessing> preprocessing() const {
        auto found = std::make_unique<resfuse_preprocessing>();
        return resfuse_get_preprocessing(get(), found.get()) == RESFUSE_OK ? std::move(found) : nullptr;
    }
    // The name of a class, or its number.
    std::string label(std::size_t index) const {
        const char* const text = resfuse_label(get(), index);
        return text == nullptr ? std::to_string(index) : text;
    }

    // The first output, float32, of one float32 input of contiguous memory; `shape` becomes the output's.
    std::vector<float> run(const float* input, std::vector<std::int64_t>& shape) const {
        const resfuse_tensor in = tensor(const_cast<float*>(input), shape);
        std::vector<resfuse_tensor> outputs(resfuse_output_count(get()));
        check(resfuse_describe_outputs(get(), &in, 1, outputs.data(), outputs.size()));
        std::vector<std::vector<float>> memory;
        for (resfuse_tensor& t : outputs) {
            std::size_t size = t.dtype == RESFUSE_INT64 ? 2 : 1;  // in floats
            for (std::int32_t d = 0; d < t.ndim; ++d) size *= static_cast<std::size_t>(t.shape[d]);
            memory.emplace_back(size);
            t.data = memory.back().data();
        }
        if (outputs.empty() || outputs[0].dtype != RESFUSE_FLOAT32)
            throw Error(RESFUSE_INVALID_ARGUMENT, "run: the first output is not float32; use resfuse_run");
        check(resfuse_run(get(), &in, 1, outputs.data(), outputs.size()));
        shape.assign(outputs[0].shape, outputs[0].shape + outputs[0].ndim);
        return std::move(memory[0]);
    }

  private:
    struct Free {
        void operator()(resfuse_model* model) const { resfuse_free(model); }
    };
    std::unique_ptr<resfuse_model, Free> model_;
};

}  // namespace resfuse

#endif
