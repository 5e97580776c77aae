// What every call of a fused model asks of the model's dictionaries, in one walk over them. Since the last call weights
// have passed through the caches, so most of what is read comes from memory, and Python code reads one after the other.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "bindings/register.h"

namespace py = pybind11;

namespace {

// All objects are borrowed: the caller keeps them alive.
struct Item {
    PyObject* dictionary;
    PyObject* key;
    PyObject* value = nullptr;  // that it has to have; null: none
};

PyObject* find(const Item& item) {
    PyObject* const value = PyDict_GetItemWithError(item.dictionary, item.key);
    if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
    return value;
}

void fetch(const Item& item) {
    __builtin_prefetch(item.dictionary);
    __builtin_prefetch(item.key);
}
void fetch_keys(const Item& item) {
    const char* const keys = reinterpret_cast<const char*>(reinterpret_cast<PyDictObject*>(item.dictionary)->ma_keys);
    for (int line = 0; line < 3; ++line) __builtin_prefetch(keys + 64 * line);
}

using Facts = std::vector<std::tuple<py::dict, py::object, py::object>>;

// Items that dictionaries must have or lack, and dictionaries that must be empty.
class DictWatch {
  public:
    DictWatch(const Facts& held, const std::vector<py::dict>& empty) {
        for (const auto& [dictionary, key, value] : held)
            held_.push_back({dictionary.ptr(), key.ptr(), value.is_none() ? nullptr : value.ptr()});
        for (const py::dict& dictionary : empty) empty_.push_back(dictionary.ptr());
    }

    bool holds() const {
        for (const Item& item : held_) fetch(item);
        for (PyObject* const dictionary : empty_) __builtin_prefetch(dictionary);
        for (const Item& item : held_) fetch_keys(item);
        for (PyObject* const dictionary : empty_)
            if (PyDict_GET_SIZE(dictionary) != 0) return false;
        for (const Item& item : held_)
            if (find(item) != item.value) return false;
        return true;
    }

  private:
    std::vector<Item> held_;
    std::vector<PyObject*> empty_;
};

// Reads items of dictionaries.
class DictReader {
  public:
    explicit DictReader(const std::vector<std::tuple<py::dict, py::object>>& items) {
        for (const auto& [dictionary, key] : items) items_.push_back({dictionary.ptr(), key.ptr()});
    }

    py::list values() const {
        for (const Item& item : items_) fetch(item);
        for (const Item& item : items_) fetch_keys(item);
        py::list list(items_.size());
        for (std::size_t i = 0; i < items_.size(); ++i) {
            PyObject* const value = find(items_[i]);
            if (value == nullptr) throw py::key_error(py::cast<std::string>(py::str(items_[i].key)));
            __builtin_prefetch(value);
            list[i] = py::reinterpret_borrow<py::object>(value);
        }
        return list;
    }

  private:
    std::vector<Item> items_;
};

}  // namespace

void register_dictionaries(py::module_& m) {
    py::class_<DictWatch>(m, "DictWatch",
                          "Items (None: absent ones) and empty dictionaries, all of which must stay alive.")
        .def(py::init<const Facts&, const std::vector<py::dict>&>(), py::arg("held"), py::arg("empty"))
        .def("holds", &DictWatch::holds, "Whether all items are these very objects and the dictionaries empty.");
    py::class_<DictReader>(m, "DictReader", "Places in dictionaries, which must stay alive.")
        .def(py::init<const std::vector<std::tuple<py::dict, py::object>>&>(), py::arg("items"))
        .def("values", &DictReader::values, "What the places hold now; raises KeyError where one holds nothing.");
}
