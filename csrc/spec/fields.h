// Reading JSON objects whose fields are known: each must be there and of its type, and no other may be.
#pragma once

#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/types.h"

namespace resfuse {

using Json = nlohmann::json;

// Throws std::invalid_argument that names `what` for text that is no JSON.
inline Json parse_json(std::string_view text, const std::string& what) {
    Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded()) throw std::invalid_argument(what + ": got text that is no JSON");
    return json;
}

// "what: got ..., want wanted", or "what: want wanted" where `what` does not tell what was got.
[[noreturn]] inline void refuse(const std::string& what, const std::string& wanted) {
    const bool tells = what.find(": got ") != std::string::npos;
    throw std::invalid_argument(what + (tells ? ", want " : ": want ") + wanted);
}

template <class T>
T read_value(const Json& json, const std::string& what);

template <>
inline bool read_value(const Json& json, const std::string& what) {
    if (!json.is_boolean()) refuse(what, "true or false");
    return json.get<bool>();
}

template <>
inline index_t read_value(const Json& json, const std::string& what) {
    if (!json.is_number_integer()) refuse(what, "an integer");
    if (json.is_number_unsigned() && json.get<std::uint64_t>() > std::uint64_t{std::numeric_limits<index_t>::max()})
        refuse(what, "an integer of 64 bits");
    return json.get<index_t>();
}

template <>
inline int read_value(const Json& json, const std::string& what) {
    const auto value = read_value<index_t>(json, what);
    if (value < std::numeric_limits<int>::min() || value > std::numeric_limits<int>::max())
        refuse(what, "an integer of 32 bits");
    return static_cast<int>(value);
}

template <>
inline std::size_t read_value(const Json& json, const std::string& what) {
    const auto value = read_value<index_t>(json, what);
    if (value < 0) refuse(what, "an integer that is not negative");
    return static_cast<std::size_t>(value);
}

template <>
inline double read_value(const Json& json, const std::string& what) {
    if (!json.is_number()) refuse(what, "a number");
    return json.get<double>();
}

template <>
inline float read_value(const Json& json, const std::string& what) {
    return static_cast<float>(read_value<double>(json, what));
}

template <>
inline std::string read_value(const Json& json, const std::string& what) {
    if (!json.is_string()) refuse(what, "a string");
    return json.get<std::string>();
}

template <class T>
std::vector<T> read_list(const Json& json, const std::string& what) {
    if (!json.is_array()) refuse(what, "a list");
    std::vector<T> values;
    for (const Json& item : json) values.push_back(read_value<T>(item, what));
    return values;
}

template <class T, std::size_t N>
std::array<T, N> read_array(const Json& json, const std::string& what) {
    const std::vector<T> values = read_list<T>(json, what);
    if (values.size() != N)
        throw std::invalid_argument(what + ": got " + std::to_string(values.size()) + " values, want " +
                                    std::to_string(N));
    std::array<T, N> array{};
    std::copy(values.begin(), values.end(), array.begin());
    return array;
}

class Fields {
  public:
    Fields(const Json& json, std::string what) : json_(json), what_(std::move(what)) {
        if (!json.is_object()) refuse(what_, "an object");
    }

    const Json& operator[](const char* key) {
        read_.insert(key);
        const auto found = json_.find(key);
        if (found == json_.end()) throw std::invalid_argument(what_ + ": has no field '" + key + "'");
        return *found;
    }
    bool has(const char* key) const { return json_.contains(key); }
    std::string name(const char* key) const { return what_ + ": " + key; }

    template <class T>
    T get(const char* key) {
        return read_value<T>((*this)[key], name(key));
    }
    template <class T>
    std::vector<T> list(const char* key) {
        return read_list<T>((*this)[key], name(key));
    }
    template <class T, std::size_t N>
    std::array<T, N> array(const char* key) {
        return read_array<T, N>((*this)[key], name(key));
    }
    // Null stands for nothing.
    template <class T>
    std::optional<T> maybe(const char* key) {
        const Json& value = (*this)[key];
        if (value.is_null()) return {};
        return read_value<T>(value, name(key));
    }
    template <class T, std::size_t N>
    std::optional<std::array<T, N>> maybe_array(const char* key) {
        const Json& value = (*this)[key];
        if (value.is_null()) return {};
        return read_array<T, N>(value, name(key));
    }

    // Throws std::invalid_argument where there are fields that nobody has read.
    void done() const {
        for (const auto& item : json_.items())
            if (!read_.contains(item.key()))
                throw std::invalid_argument(what_ + ": got an unknown field '" + item.key() + "'");
    }

  private:
    const Json& json_;
    std::string what_;
    std::set<std::string, std::less<>> read_;
};

}  // namespace resfuse
