// What every call of a fused model asks of the model's Python state, in one walk over it. Since the last call weights
// have passed through the caches, so most of what is read comes from memory, and Python code reads one after the other.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "bindings/register.h"

namespace py = pybind11;

namespace {

// A dictionary changes its version whenever one of its items is set or deleted (PEP 509). None: later Pythons do not
// tell.
using Version = std::optional<std::uint64_t>;
Version version_of(PyObject* dictionary) {
#if PY_VERSION_HEX < 0x030C0000
    return reinterpret_cast<PyDictObject*>(dictionary)->ma_version_tag;
#else
    (void)dictionary;
    return {};
#endif
}

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
void fetch_keys(PyObject* dictionary) {
    const char* const keys = reinterpret_cast<const char*>(reinterpret_cast<PyDictObject*>(dictionary)->ma_keys);
    for (int line = 0; line < 3; ++line) __builtin_prefetch(keys + 64 * line);
}

// Items and what they have to be, by their dictionaries.
class Items {
  public:
    void add(PyObject* dictionary, PyObject* key, PyObject* value) {
        const auto [found, is_new] = places_.try_emplace(dictionary, dictionaries_.size());
        if (is_new) dictionaries_.push_back({dictionary, {}, {}});
        dictionaries_[found->second].items.push_back({dictionary, key, value});
    }

    void fetch() const {
        for (const Dictionary& each : dictionaries_) __builtin_prefetch(each.dictionary);
    }

    // Dictionaries in which nothing was set since all their items were right are not looked into.
    bool hold() {
        for (const Dictionary& each : dictionaries_)
            if (!is_as_before(each)) {
                fetch_keys(each.dictionary);
                for (const Item& item : each.items) __builtin_prefetch(item.key);
            }
        for (Dictionary& each : dictionaries_) {
            if (is_as_before(each)) continue;
            const Version version = version_of(each.dictionary);
            for (const Item& item : each.items)
                if (find(item) != item.value) return false;
            each.right_at = version;
        }
        return true;
    }

  private:
    struct Dictionary {
        PyObject* dictionary;
        std::vector<Item> items;
        Version right_at;  // the version at which all items were right
    };

    static bool is_as_before(const Dictionary& each) {
        return each.right_at.has_value() && each.right_at == version_of(each.dictionary);
    }

    std::vector<Dictionary> dictionaries_;
    std::unordered_map<PyObject*, std::size_t> places_;
};

// A class changes its version when one of its attributes, or of its bases' attributes, is set. 0: it has none.
unsigned version_of(PyTypeObject* type) {
    return PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG) ? type->tp_version_tag : 0;
}

// An ordered dictionary or a list, and what it has to contain.
struct Contents {
    PyObject* container;
    std::vector<PyObject*> keys;  // of a dictionary
    std::vector<PyObject*> values;
};

bool holds(const Contents& contents) {
    if (PyList_Check(contents.container)) {
        if (PyList_GET_SIZE(contents.container) != static_cast<Py_ssize_t>(contents.values.size())) return false;
        for (std::size_t i = 0; i < contents.values.size(); ++i)
            if (PyList_GET_ITEM(contents.container, static_cast<Py_ssize_t>(i)) != contents.values[i]) return false;
        return true;
    }
    if (PyDict_GET_SIZE(contents.container) != static_cast<Py_ssize_t>(contents.values.size())) return false;
    Py_ssize_t position = 0;
    PyObject *key = nullptr, *value = nullptr;
    for (std::size_t i = 0; PyDict_Next(contents.container, &position, &key, &value); ++i)
        if (key != contents.keys[i] || value != contents.values[i]) return false;
    return true;
}

using Held = std::vector<std::tuple<py::dict, py::object, py::object>>;
using Absent = std::vector<std::tuple<py::dict, py::object>>;
using Pairs = std::vector<std::tuple<py::object, py::object>>;

// What a graph assumed of Python's objects. Values are compared by identity: where one is another object, the caller
// compares by value and makes a new watch.
class StateWatch {
  public:
    StateWatch(const Held& held, const Absent& absent, const Pairs& contents, const Pairs& types, const Pairs& cells,
               const std::vector<py::dict>& empty, const Held& usual) {
        for (const auto& [dictionary, key, value] : held) held_.add(dictionary.ptr(), key.ptr(), value.ptr());
        for (const auto& [dictionary, key] : absent) held_.add(dictionary.ptr(), key.ptr(), nullptr);
        for (const auto& [dictionary, key, value] : usual) usual_.add(dictionary.ptr(), key.ptr(), value.ptr());
        for (const auto& [container, wanted] : contents) add_contents(container, wanted);
        for (const auto& [object, dictionary] : types)
            objects_.push_back({object.ptr(), Py_TYPE(object.ptr()), dictionary.ptr()});
        for (const auto& [cell, value] : cells) {
            if (!PyCell_Check(cell.ptr())) throw py::type_error("cells: want pairs of a cell and its contents");
            cells_.emplace_back(cell.ptr(), value.ptr());
        }
        for (const py::dict& dictionary : empty) empty_.push_back(dictionary.ptr());
        for (const Object& object : objects_) {
            bool known = false;
            for (const auto& [type, version] : versions_) known |= type == object.type;
            if (known) continue;
            // Looking an attribute up gives the class a version, if it has none.
            PyObject* const looked_up = PyObject_GetAttrString(reinterpret_cast<PyObject*>(object.type), "__init__");
            if (looked_up == nullptr) throw py::error_already_set();
            Py_DECREF(looked_up);
            versions_.emplace_back(object.type, version_of(object.type));
        }
    }

    // 0: something is another object than it was; 1: all holds; 2: the usual items hold as well.
    int check() {
        held_.fetch();
        for (PyObject* const dictionary : empty_) __builtin_prefetch(dictionary);
        for (const Object& object : objects_) __builtin_prefetch(object.object);
        for (const auto& [type, version] : versions_)
            if (version == 0 || version_of(type) != version) return 0;
        for (PyObject* const dictionary : empty_)
            if (PyDict_GET_SIZE(dictionary) != 0) return 0;
        for (const Object& object : objects_)
            if (!holds(object)) return 0;
        for (const auto& [cell, value] : cells_)
            if (PyCell_GET(cell) != value) return 0;
        for (const Contents& contents : contents_)
            if (!::holds(contents)) return 0;
        if (!held_.hold()) return 0;
        return usual_.hold() ? 2 : 1;
    }

  private:
    struct Object {
        PyObject* object;
        PyTypeObject* type;
        PyObject* dictionary;
    };

    static bool holds(const Object& object) {
        if (Py_TYPE(object.object) != object.type) return false;
        PyObject* const dictionary = PyObject_GenericGetDict(object.object, nullptr);
        if (dictionary == nullptr) throw py::error_already_set();
        Py_DECREF(dictionary);  // the object holds it
        return dictionary == object.dictionary;
    }

    void add_contents(const py::object& container, const py::object& wanted) {
        Contents contents{container.ptr(), {}, {}};
        if (py::isinstance<py::dict>(container)) {
            for (const auto& [key, value] : wanted.cast<py::dict>()) {
                contents.keys.push_back(key.ptr());
                contents.values.push_back(value.ptr());
            }
        } else if (py::isinstance<py::list>(container)) {
            for (const py::handle value : wanted.cast<py::list>()) contents.values.push_back(value.ptr());
        } else {
            throw py::type_error("contents: want pairs of a dictionary or list and a copy of it");
        }
        contents_.push_back(std::move(contents));
    }

    Items held_, usual_;
    std::vector<Contents> contents_;
    std::vector<Object> objects_;
    std::vector<std::pair<PyTypeObject*, unsigned>> versions_;
    std::vector<std::pair<PyObject*, PyObject*>> cells_;
    std::vector<PyObject*> empty_;
};

// Reads items of dictionaries.
class DictReader {
  public:
    explicit DictReader(const Absent& items) {
        for (const auto& [dictionary, key] : items) items_.push_back({dictionary.ptr(), key.ptr()});
    }

    py::list values() const {
        for (const Item& item : items_) fetch(item);
        for (const Item& item : items_) fetch_keys(item.dictionary);
        py::list list(items_.size());
        for (std::size_t i = 0; i < items_.size(); ++i) {
            PyObject* const value = find(items_[i]);
            if (value == nullptr || value == Py_None)
                throw py::key_error(py::cast<std::string>(py::str(items_[i].key)));
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
    py::class_<StateWatch>(m, "StateWatch", "What is assumed of Python objects, all of which must stay alive.")
        .def(py::init<const Held&, const Absent&, const Pairs&, const Pairs&, const Pairs&,
                      const std::vector<py::dict>&, const Held&>(),
             py::arg("held"), py::arg("absent"), py::arg("contents"), py::arg("types"), py::arg("cells"),
             py::arg("empty"), py::arg("usual"))
        .def("check", &StateWatch::check,
             "0 where something is another object than it was, 1 where all holds, 2 where the usual items do as well.");
    py::class_<DictReader>(m, "DictReader", "Places in dictionaries, which must stay alive.")
        .def(py::init<const Absent&>(), py::arg("items"))
        .def("values", &DictReader::values,
             "What the places hold now; raises KeyError where one holds nothing or None.");
}
