#pragma once

#include <pybind11/pybind11.h>

void register_dictionaries(pybind11::module_& m);
void register_fingerprint(pybind11::module_& m);
void register_global_avg_pool(pybind11::module_& m);
void register_info(pybind11::module_& m);
void register_planes(pybind11::module_& m);
void register_program(pybind11::module_& m);
void register_training(pybind11::module_& m);
void register_plan(pybind11::module_& m);
