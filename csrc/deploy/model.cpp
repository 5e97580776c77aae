#include "deploy/model.h"

#include <algorithm>
#include <stdexcept>

#include "deploy/safetensors.h"
#include "machine/threads.h"
#include "plan/run.h"
#include "spec/fields.h"
#include "spec/parameters.h"

namespace resfuse {

namespace {

constexpr std::size_t kMostPlans = 64;
constexpr int kVersion = 1;
constexpr index_t kMostIndex = index_t{1} << 24;  // that a float holds exactly

struct TypePair {
    DType type;
    StoredType stored;
};
constexpr std::array<TypePair, 3> kTypes = {
    {{DType::fp32, StoredType::fp32}, {DType::bf16, StoredType::bf16}, {DType::fp16, StoredType::fp16}}};

StoredType stored_type(DType type) {
    for (const TypePair& pair : kTypes)
        if (pair.type == type) return pair.stored;
    refuse(std::string("dtype: got ") + type_name(type), "fp32, bf16 or fp16");
}

DType element_type(StoredType type, const std::string& what) {
    for (const TypePair& pair : kTypes)
        if (pair.stored == type) return pair.type;
    refuse(what + ": got " + stored_name(type), "float32, bfloat16 or float16");
}

Preprocessing read_preprocessing(const Json& json) {
    Fields fields(json, "preprocessing");
    const auto size = fields.array<index_t, 2>("size");
    Preprocessing found{size[0],
                        size[1],
                        fields.get<index_t>("resize"),
                        fields.list<double>("mean"),
                        fields.list<double>("std"),
                        fields.get<std::string>("interpolation")};
    fields.done();
    constexpr index_t kMost = 1 << 16;
    for (const index_t length : {found.height, found.width, found.resize})
        if (length <= 0 || length > kMost) refuse("preprocessing: size, resize", "1 to 65536");
    if (found.resize < std::max(found.height, found.width)) refuse("preprocessing: resize", "no less than size");
    if (found.interpolation != "bilinear" && found.interpolation != "bicubic")
        refuse("preprocessing: interpolation: got '" + found.interpolation + "'", "'bilinear' or 'bicubic'");
    for (const double value : found.std)
        if (!(value > 0.0)) refuse("preprocessing: std", "positive numbers");
    return found;
}

// Dense [N, C, H, W] elements of the model's own.
struct Dense {
    AlignedBytes memory;
    Array4 array;

    Dense(const std::array<index_t, 4>& shape, DType type, bool planes)
        : memory(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3]) * element_bytes(type)) {
        const auto [n, c, h, w] = shape;
        array = {
            memory.data(), shape,
            planes ? std::array<index_t, 4>{c * h * w, h * w, w, 1} : std::array<index_t, 4>{c * h * w, 1, w * c, c},
            type};
    }
};

// An output of any rank as one of four dimensions: the missing ones of one element.
StoredTensor four_dimensional(StoredTensor tensor, bool is_index) {
    const auto insert = [&](std::size_t place) {
        tensor.shape.insert(tensor.shape.begin() + static_cast<std::ptrdiff_t>(place), 1);
        tensor.strides.insert(tensor.strides.begin() + static_cast<std::ptrdiff_t>(place), 0);
    };
    if (is_index) insert(1);
    while (tensor.shape.size() < 4) insert(tensor.shape.size());
    return tensor;
}

Array4 as_array(const StoredTensor& tensor, DType type) {
    Array4 array{const_cast<void*>(tensor.data), {}, {}, type};
    std::copy(tensor.shape.begin(), tensor.shape.end(), array.shape.begin());
    std::copy(tensor.strides.begin(), tensor.strides.end(), array.strides.begin());
    return array;
}

}  // namespace

Model::Model(const std::string& path, int threads) : file_(path), threads_(threads) {
    try {
        read();
    } catch (const std::invalid_argument& error) {
        throw std::invalid_argument(path + ": " + error.what());
    }
}

void Model::read() {
    Safetensors file = read_safetensors({file_.data(), file_.size()});
    const auto text = file.metadata.find("resfuse");
    if (text == file.metadata.end())
        refuse("file", "one that resfuse.save has written; this is another safetensors file");
    const Json json = parse_json(text->second, "resfuse");
    Fields fields(json, "resfuse");
    const int version = fields.get<int>("version");
    if (version != kVersion)
        refuse("version: got " + std::to_string(version), "1: a newer resfuse has written this file");
    type_ = parse_type(fields.get<std::string>("dtype"));
    stored_type(type_);
    spec_ = read_spec(fields["program"].dump(), active_isa(), type_);
    std::vector<StoredTensor> parameters;
    for (const std::string& name : fields.list<std::string>("parameters")) {
        const auto found = file.tensors.find(name);
        if (found == file.tensors.end()) refuse("parameters: '" + name + "'", "the name of a tensor in the file");
        parameters.push_back(found->second);
    }
    const Program& program = *spec_.program;
    for (const Json& item : fields["inputs"]) {
        Fields input(item, "input " + std::to_string(inputs_.size()));
        ModelInput made{input.get<std::string>("name"), 0, {}};
        if (const auto size = input.maybe_array<index_t, 2>("size")) made.size = Extent{(*size)[0], (*size)[1]};
        input.done();
        if (inputs_.size() < program.inputs().size())
            made.channels = program.channels(program.inputs()[inputs_.size()]);
        inputs_.push_back(std::move(made));
    }
    if (inputs_.empty() || inputs_.size() != program.inputs().size())
        refuse("inputs: got " + std::to_string(inputs_.size()), "one for each of the program's");
    for (const Json& item : fields["outputs"]) {
        Fields output(item, "output " + std::to_string(outputs_.size()));
        ModelOutput made{output.get<std::string>("name"), output.get<std::size_t>("output"), 4, {}};
        for (const std::string& name : output.list<std::string>("functions")) made.heads.push_back(parse_head(name));
        output.done();
        if (made.output >= spec_.ranks.size()) refuse(output.name("output"), "the number of an output of the program");
        made.rank = spec_.ranks[made.output];
        const auto index = std::find(made.heads.begin(), made.heads.end(), Head::argmax);
        if (index != made.heads.end() && index + 1 != made.heads.end())
            refuse(output.name("functions"), "argmax to be the last");
        if (made.is_index() && program.channels(program.outputs()[made.output]) > kMostIndex)
            refuse(output.name("functions"), "argmax of 2^24 channels at most");
        outputs_.push_back(std::move(made));
    }
    if (outputs_.empty()) refuse("outputs", "at least one");
    if (!fields["preprocessing"].is_null()) preprocessing_ = read_preprocessing(fields["preprocessing"]);
    if (preprocessing_)
        for (const auto* const values : {&preprocessing_->mean, &preprocessing_->std})
            if (static_cast<index_t>(values->size()) != inputs_[0].channels)
                refuse("preprocessing: mean, std", "a number for each channel of the first input");
    labels_ = fields.list<std::string>("labels");
    fields.done();
    weights_.emplace(spec_.program);
    set_parameters(*weights_, spec_, parameters);
}

StoredType Model::type() const { return stored_type(type_); }
int Model::threads() const { return usable_threads(threads_); }

std::vector<Array4> Model::check_inputs(std::span<const StoredTensor> inputs) const {
    if (inputs.size() != inputs_.size())
        refuse("inputs: got " + std::to_string(inputs.size()), std::to_string(inputs_.size()));
    std::vector<Array4> arrays;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        const ModelInput& want = inputs_[i];
        const std::string what = "input '" + want.name + "'";
        const DType type = element_type(inputs[i].type, what);
        if (type != type_ && type != DType::fp32)
            refuse(what + ": got " + stored_name(inputs[i].type),
                   type_ == DType::fp32 ? "float32" : std::string("float32 or ") + stored_name(stored_type(type_)));
        const std::vector<index_t>& shape = inputs[i].shape;
        const bool fits = shape.size() == 4 && shape[1] == want.channels && shape[2] > 0 && shape[3] > 0 &&
                          (!want.size || (shape[2] == want.size->h && shape[3] == want.size->w));
        if (!fits) {
            const std::string size =
                want.size ? std::to_string(want.size->h) + ", " + std::to_string(want.size->w) : "H, W";
            refuse(what + ": got shape " + shape_text(shape),
                   "[N, " + std::to_string(want.channels) + ", " + size + "]");
        }
        if (shape[0] < 0 || shape[0] != inputs[0].shape[0])
            refuse(what + ": got a batch of " + std::to_string(shape[0]), "that of the first input");
        if (shape[0] > 0 && inputs[i].data == nullptr) refuse(what, "memory, got a null pointer");
        arrays.push_back(as_array(inputs[i], type));
    }
    return arrays;
}

std::shared_ptr<const Plan> Model::plan_of(const std::vector<Array4>& inputs) {
    const int threads = usable_threads(threads_);  // fewer where the process was forked meanwhile
    Key key = {std::max<index_t>(inputs[0].shape[0], 1), threads};
    std::vector<InputShape> shapes;
    for (const Array4& x : inputs) {
        // What is converted is converted to dense memory.
        shapes.push_back({x.shape[2], x.shape[3], is_dense_nhwc(x) || x.type != type_});
        key.insert(key.end(), {shapes.back().height, shapes.back().width, shapes.back().dense});
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = std::find_if(plans_.begin(), plans_.end(), [&](const auto& plan) { return plan.first == key; });
    if (found != plans_.end()) {
        plans_.splice(plans_.begin(), plans_, found);
        return plans_.front().second;
    }
    std::vector<std::size_t> planes;
    for (std::size_t o = 0; o < spec_.ranks.size(); ++o)
        if (spec_.ranks[o] == 4) planes.push_back(o);
    auto plan = std::make_shared<const Plan>(spec_.program, key[0], shapes, threads, planes);
    for (std::size_t o = 0; o < spec_.ranks.size(); ++o) {
        const Extent extent = plan->extent(spec_.program->outputs()[o]);
        if (spec_.ranks[o] == 2 && (extent.h != 1 || extent.w != 1))
            refuse("output " + std::to_string(o) + ": got an image of " + std::to_string(extent.h) + " x " +
                       std::to_string(extent.w),
                   "one pixel");
    }
    plans_.emplace_front(std::move(key), plan);
    if (plans_.size() > kMostPlans) plans_.pop_back();
    weights_->prepare(plan->algorithms(), threads);
    file_.release();  // what is packed is not read again
    return plan;
}

std::vector<StoredTensor> Model::describe(const Plan& plan, const std::vector<Array4>& inputs) const {
    std::vector<StoredTensor> tensors;
    for (const ModelOutput& o : outputs_) {
        const int buffer = spec_.program->outputs()[o.output];
        const Extent extent = plan.extent(buffer);
        StoredTensor tensor;
        tensor.type = o.is_index() ? StoredType::s64 : stored_type(inputs[0].type);
        tensor.shape = {inputs[0].shape[0]};
        if (!o.is_index()) tensor.shape.push_back(spec_.program->channels(buffer));
        if (o.rank == 4) tensor.shape.insert(tensor.shape.end(), {extent.h, extent.w});
        tensor.strides = contiguous_strides(tensor.shape);
        tensors.push_back(std::move(tensor));
    }
    return tensors;
}

std::vector<StoredTensor> Model::describe(std::span<const StoredTensor> inputs) {
    const std::vector<Array4> arrays = check_inputs(inputs);
    return describe(*plan_of(arrays), arrays);
}

std::size_t Model::workspace_bytes(std::span<const StoredTensor> inputs) {
    return plan_of(check_inputs(inputs))->workspace().bytes;
}

void Model::run(std::span<const StoredTensor> inputs, std::span<const StoredTensor> outputs) {
    std::vector<Array4> arrays = check_inputs(inputs);
    if (outputs.size() != outputs_.size())
        refuse("outputs: got " + std::to_string(outputs.size()), std::to_string(outputs_.size()));
    const std::shared_ptr<const Plan> plan = plan_of(arrays);
    const std::vector<StoredTensor> wanted = describe(*plan, arrays);
    std::vector<StoredTensor> to;
    for (std::size_t o = 0; o < outputs.size(); ++o) {
        const StoredTensor& want = wanted[o];
        const std::string what = "output '" + outputs_[o].name + "'";
        if (outputs[o].shape != want.shape)
            refuse(what + ": got shape " + shape_text(outputs[o].shape), shape_text(want.shape));
        if (outputs[o].type != want.type)
            refuse(what + ": got " + stored_name(outputs[o].type), stored_name(want.type));
        if (outputs[o].size() > 0 && outputs[o].data == nullptr) refuse(what, "memory, got a null pointer");
        to.push_back(four_dimensional(outputs[o], outputs_[o].is_index()));
    }
    const index_t batch = arrays[0].shape[0];
    if (batch == 0) return;

    std::vector<Dense> converted;
    converted.reserve(arrays.size());
    std::vector<Tensor> in, out;
    for (Array4& x : arrays) {
        if (x.type != type_) {
            converted.emplace_back(x.shape, type_, false);
            const Array4& own = converted.back().array;
            copy_converted(x, {own.data,
                               stored_type(type_),
                               {own.shape.begin(), own.shape.end()},
                               {own.strides.begin(), own.strides.end()}});
            x = own;
        }
        in.push_back(to_tensor(x));
    }
    // A program's output lies where a user's output is just that; else in memory of ours.
    std::vector<Dense> own;
    own.reserve(spec_.ranks.size());
    std::vector<Array4> made;
    for (std::size_t p = 0; p < spec_.ranks.size(); ++p) {
        const int buffer = spec_.program->outputs()[p];
        const Extent extent = plan->extent(buffer);
        const std::array<index_t, 4> shape = {batch, spec_.program->channels(buffer), extent.h, extent.w};
        std::optional<Array4> direct;
        for (std::size_t o = 0; o < to.size() && !direct; ++o)
            if (outputs_[o].output == p && outputs_[o].heads.empty() && to[o].type == stored_type(type_))
                if (const Array4 array = as_array(to[o], type_); is_dense_nchw(array)) direct = array;
        if (!direct) own.emplace_back(shape, type_, true);
        made.push_back(direct ? *direct : own.back().array);
        out.push_back(plan->in_planes(p) ? to_planes(made.back()) : to_tensor(made.back()));
    }
    resfuse::run(*plan, *weights_, in, out);
    for (std::size_t o = 0; o < to.size(); ++o) {
        const Array4& from = made[outputs_[o].output];
        if (from.data == to[o].data) continue;
        if (outputs_[o].heads.empty()) {
            copy_converted(from, to[o]);
            continue;
        }
        Dense real(from.shape, DType::fp32, true);
        copy_converted(from, {real.array.data,
                              StoredType::fp32,
                              {from.shape.begin(), from.shape.end()},
                              {real.array.strides.begin(), real.array.strides.end()}});
        apply_heads(outputs_[o].heads, real.array.floats(), from.shape);
        if (outputs_[o].is_index()) real.array.shape[1] = 1;
        copy_converted(real.array, to[o]);
    }
}

}  // namespace resfuse
