#pragma once

#include <pybind11/pybind11.h>

// FLOP/s of multiply-adds on one core, by torch's name of the inputs' dtype; sums are float32.
pybind11::dict peak_rates();
