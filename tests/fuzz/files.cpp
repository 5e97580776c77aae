// Fuzz target: a file is a model or is refused; a model computes what it says or refuses its input. Nothing else
// happens.
//
// Inputs are files as resfuse.save writes them (tests/fuzz/models). Mutations keep most of them safetensors files whose
// header is JSON, as bytes changed at random would all fail at the same first check.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>

#include "deploy/model.h"

namespace {

using namespace resfuse;

constexpr std::size_t kMostWorkspace = std::size_t{1} << 24;  // more would test the machine's patience alone

// Says at the end how far the inputs came: a target that refuses everything tests little.
struct Counts {
    long files = 0, models = 0, runs = 0;
    ~Counts() { std::fprintf(stderr, "%ld files, %ld of them models, %ld runs\n", files, models, runs); }
} counts;

// A file in memory, and the path by which it can be opened.
class MemoryFile {
  public:
    MemoryFile(const std::uint8_t* data, std::size_t size) : descriptor_(memfd_create("model", 0)) {
        if (descriptor_ < 0 || write(descriptor_, data, size) != static_cast<ssize_t>(size)) std::abort();
    }
    ~MemoryFile() { close(descriptor_); }
    MemoryFile(const MemoryFile&) = delete;
    MemoryFile& operator=(const MemoryFile&) = delete;
    std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

  private:
    int descriptor_;
};

StoredTensor tensor_of(std::vector<float>& memory, const std::vector<index_t>& shape) {
    StoredTensor tensor{nullptr, StoredType::fp32, shape, contiguous_strides(shape)};
    memory.assign(static_cast<std::size_t>(tensor.size()), 0.25f);
    tensor.data = memory.data();
    return tensor;
}

void compute(Model& model, index_t height, index_t width) {
    std::vector<std::vector<float>> in(model.inputs().size()), out(model.outputs().size());
    std::vector<StoredTensor> inputs, outputs;
    for (std::size_t i = 0; i < in.size(); ++i) {
        const ModelInput& input = model.inputs()[i];
        const Extent size = input.size.value_or(Extent{height, width});
        if (input.channels > 4096 || size.h > 64 || size.w > 64) return;
        inputs.push_back(tensor_of(in[i], {2, input.channels, size.h, size.w}));
    }
    if (model.workspace_bytes(inputs) > kMostWorkspace) return;
    outputs = model.describe(inputs);
    for (std::size_t o = 0; o < out.size(); ++o) {
        StoredTensor& tensor = outputs[o];
        if (tensor.size() > static_cast<index_t>(kMostWorkspace)) return;
        out[o].resize(static_cast<std::size_t>(tensor.size()) * 2);  // indices have 64 bits
        tensor.data = out[o].data();
    }
    model.run(inputs, outputs);
    ++counts.runs;
}

std::string with_length(const std::string& header, const std::string& data) {
    const std::uint64_t length = header.size();
    std::string file(sizeof(length), '\0');
    std::memcpy(file.data(), &length, sizeof(length));
    return file + header + data;
}

// The number behind a random place becomes another one, mostly a small one.
void change_number(std::string& text, std::mt19937& random) {
    constexpr const char* kStrange[] = {"-1",   "4294967296", "2147483647", "9223372036854775807", "1e99", "0.5", "-0",
                                        "null", "16777216",   "true"};
    const std::size_t at = text.find_first_of("0123456789", random() % text.size());
    if (at == std::string::npos) return;
    const std::size_t end = std::min(text.find_first_not_of("0123456789.", at), text.size());
    const bool strange = random() % 4 == 0;
    text.replace(at, end - at, strange ? kStrange[random() % std::size(kStrange)] : std::to_string(random() % 9));
}

// A word becomes another one of the text's.
void change_word(std::string& text, std::mt19937& random) {
    constexpr const char* kLetters = "abcdefghijklmnopqrstuvwxyz_";
    const auto word = [&](std::size_t& at) {
        at = text.find_first_of(kLetters, random() % text.size());
        if (at == std::string::npos) return std::string();
        at = text.find_last_not_of(kLetters, at) + 1;
        return text.substr(at, std::min(text.find_first_not_of(kLetters, at), text.size()) - at);
    };
    std::size_t at = 0, other = 0;
    const std::string old = word(at), made = word(other);
    if (!old.empty() && !made.empty()) text.replace(at, old.size(), made);
}

void change(std::string& text, std::mt19937& random) {
    if (text.empty()) return;
    const std::size_t at = random() % text.size(), length = 1 + random() % 40;
    switch (random() % 16) {
        case 0:
            text[at] = static_cast<char>(random());
            break;
        case 1:
            text.erase(at, length);
            break;
        case 2:
            text.insert(random() % text.size(), text.substr(at, length));
            break;
        case 3:
            text.replace(at, length, text.substr(random() % text.size(), length));
            break;
        case 4:
        case 5:
            change_word(text, random);
            break;
        default:
            change_number(text, random);
    }
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed) {
    std::mt19937 random(seed);
    std::string file(reinterpret_cast<const char*>(data), size);
    std::uint64_t length = 0;
    if (size >= sizeof(length)) std::memcpy(&length, file.data(), sizeof(length));
    const int changes = 1 + static_cast<int>(random() % 2);
    if (size < sizeof(length) || length > size - sizeof(length) || random() % 16 == 0) {
        for (int i = 0; i < changes; ++i) change(file, random);
        if (random() % 4 == 0) file.resize(random() % (file.size() + 1));
    } else {
        std::string header = file.substr(sizeof(length), length), values = file.substr(sizeof(length) + length);
        for (int i = 0; i < changes; ++i) change(random() % 8 == 0 ? values : header, random);
        file = with_length(header, values);
    }
    size = std::min(most, file.size());
    std::memcpy(data, file.data(), size);
    return size;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const MemoryFile file(data, size);
    ++counts.files;
    try {
        Model model(file.path(), 1);
        ++counts.models;
        for (const auto& [height, width] : {std::pair<index_t, index_t>{9, 10}, {32, 32}})
            compute(model, height, width);
    } catch (const std::invalid_argument&) {
    } catch (const std::runtime_error&) {
        if (size != 0) throw;  // an empty file cannot be mapped; any other can be read
    } catch (const std::length_error&) {
    } catch (const std::bad_alloc&) {
    }
    return 0;
}
