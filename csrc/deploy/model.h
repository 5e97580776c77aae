// A model from a file: a program, its parameters, and what its inputs and outputs are called. Knows no Python.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "deploy/mapped_file.h"
#include "deploy/outputs.h"
#include "plan/plan.h"
#include "spec/spec.h"
#include "weights/weights.h"

namespace resfuse {

struct ModelInput {
    std::string name;
    index_t channels;
    std::optional<Extent> size;  // where the model takes images of no other
};

// What is done to images before a model sees them: the shorter side becomes `resize`, the middle of `height` x `width`
// is kept, and a pixel p from 0 to 1 becomes (p - mean) / std.
struct Preprocessing {
    index_t height, width, resize;
    std::vector<double> mean, std;  // by channel
    std::string interpolation;      // "bilinear" or "bicubic"
};

class Model {
  public:
    // Throws std::runtime_error for a file that cannot be read,
    // std::invalid_argument for one that holds no model of ours, or of a newer version.
    Model(const std::string& path, int threads);

    const std::vector<ModelInput>& inputs() const { return inputs_; }
    const std::vector<ModelOutput>& outputs() const { return outputs_; }
    const std::optional<Preprocessing>& preprocessing() const { return preprocessing_; }
    const std::vector<std::string>& labels() const { return labels_; }  // of classes; may be empty
    StoredType type() const;                                            // that it computes in
    int threads() const;

    // Shapes and types of the outputs for inputs [N, C, H, W] of some shape, strides and type.
    std::vector<StoredTensor> describe(std::span<const StoredTensor> inputs);

    // Memory that run() takes for inputs of these shapes, beside what it is given and the weights.
    std::size_t workspace_bytes(std::span<const StoredTensor> inputs);

    // Inputs of any strides, of the type that the model computes in or float32; outputs of any strides and of the
    // shapes and types that describe() says. Thread-safe. Throws std::invalid_argument for others.
    void run(std::span<const StoredTensor> inputs, std::span<const StoredTensor> outputs);

  private:
    using Key = std::vector<index_t>;

    void read();
    std::vector<Array4> check_inputs(std::span<const StoredTensor> inputs) const;
    std::vector<StoredTensor> describe(const Plan& plan, const std::vector<Array4>& inputs) const;
    std::shared_ptr<const Plan> plan_of(const std::vector<Array4>& inputs);

    MappedFile file_;
    int threads_;
    DType type_ = DType::fp32;
    Spec spec_;
    std::vector<ModelInput> inputs_;
    std::vector<ModelOutput> outputs_;
    std::optional<Preprocessing> preprocessing_;
    std::vector<std::string> labels_;
    std::optional<WeightSet> weights_;
    std::mutex mutex_;
    std::list<std::pair<Key, std::shared_ptr<const Plan>>> plans_;  // the one used last first
};

}  // namespace resfuse
