// The safetensors format (https://github.com/huggingface/safetensors): the length of a JSON header in eight bytes, the
// header, and the tensors' bytes, one behind the other. Nothing of it is ever run.
#pragma once

#include <map>
#include <span>
#include <string>

#include "program/stored_tensor.h"

namespace resfuse {

struct Safetensors {
    std::map<std::string, std::string> metadata;
    std::map<std::string, StoredTensor> tensors;  // that lie in the bytes
};

// Throws std::invalid_argument for bytes that are no such file, hold other types than a StoredTensor has, or tensors at
// addresses that their type does not allow.
Safetensors read_safetensors(std::span<const std::byte> bytes);

}  // namespace resfuse
