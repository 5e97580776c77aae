#include "deploy/safetensors.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "spec/fields.h"

namespace resfuse {

namespace {

constexpr std::uint64_t kMostHeader = 100'000'000;  // as the format's own library has it
constexpr std::size_t kMostDimensions = 8;
constexpr std::array<const char*, kStoredTypes> kNames = {"F32", "F64", "BF16", "F16", "I8", "I32", "I64"};

struct Span {
    std::uint64_t begin, end;
};

StoredType read_type(const std::string& name, const std::string& what) {
    const auto found = std::find(kNames.begin(), kNames.end(), name);
    if (found == kNames.end()) refuse(what + ": got dtype " + name, "F32, F64, BF16, F16, I8, I32 or I64");
    return static_cast<StoredType>(found - kNames.begin());
}

// Its place in the data, which has so many bytes.
Span read_tensor(const Json& json, const std::string& name, std::span<const std::byte> data, StoredTensor& tensor) {
    const std::string what = "tensor '" + name + "'";
    Fields fields(json, what);
    tensor.type = read_type(fields.get<std::string>("dtype"), what);
    tensor.shape = fields.list<index_t>("shape");
    const auto [begin, end] = fields.array<std::size_t, 2>("data_offsets");
    fields.done();
    if (tensor.shape.size() > kMostDimensions)
        refuse(what + ": got " + std::to_string(tensor.shape.size()) + " dimensions", "8 at most");
    const auto bytes = static_cast<std::uint64_t>(stored_bytes(tensor.type));
    std::uint64_t size = bytes;
    for (const index_t length : tensor.shape) {
        if (length < 0 || (length > 0 && size > data.size() / static_cast<std::uint64_t>(length)))
            refuse(what + ": its shape", "lengths whose product lies in the file");
        size *= static_cast<std::uint64_t>(length);
    }
    if (begin > end || end > data.size() || end - begin != size)
        refuse(what + ": data_offsets " + std::to_string(begin) + " to " + std::to_string(end),
               "as many bytes as its shape has, in the file");
    tensor.data = data.data() + begin;
    if (reinterpret_cast<std::uintptr_t>(tensor.data) % bytes != 0)
        refuse(what + ": its bytes", "an address that is a multiple of the item size");
    tensor.strides = contiguous_strides(tensor.shape);
    return {begin, end};
}

}  // namespace

Safetensors read_safetensors(std::span<const std::byte> bytes) {
    std::uint64_t header = 0;
    if (bytes.size() < sizeof(header)) refuse("file: " + std::to_string(bytes.size()) + " bytes", "at least 8");
    std::memcpy(&header, bytes.data(), sizeof(header));  // little-endian, as all machines that we run on
    if (header > kMostHeader || header > bytes.size() - sizeof(header))
        refuse("file: a header of " + std::to_string(header) + " bytes",
               "one that lies in the file (no safetensors file)");
    const char* const text = reinterpret_cast<const char*>(bytes.data()) + sizeof(header);
    const Json json = parse_json({text, static_cast<std::size_t>(header)}, "file: header");
    if (!json.is_object()) refuse("file: header", "an object");
    const std::span<const std::byte> data = bytes.subspan(sizeof(header) + static_cast<std::size_t>(header));
    Safetensors found;
    std::vector<Span> spans;
    for (const auto& [name, value] : json.items()) {
        if (name == "__metadata__") {
            if (!value.is_object()) refuse("file: __metadata__", "an object");
            for (const auto& [key, item] : value.items())
                found.metadata[key] = read_value<std::string>(item, "file: __metadata__: " + key);
        } else {
            spans.push_back(read_tensor(value, name, data, found.tensors[name]));
        }
    }
    std::sort(spans.begin(), spans.end(),
              [](const Span& a, const Span& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
    std::uint64_t end = 0;
    for (const Span& span : spans) {
        if (span.begin != end) refuse("file: tensors", "to lie one behind the other");
        end = span.end;
    }
    if (end != data.size()) refuse("file: " + std::to_string(data.size()) + " bytes of data", std::to_string(end));
    return found;
}

}  // namespace resfuse
