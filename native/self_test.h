// Compares the kernels of an instruction set with the scalar ones on small made-up inputs, in some milliseconds.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace subsecond {

struct SelfTestResult {
  std::string kernel;  // operator and format, such as "linear_q4_1"
  double error;        // largest difference, relative to the largest value
  double tolerance;    // 0 for the arithmetic of the scalar kernels, whose bits agree; else some roundings of bfloat16
  uint64_t digest;     // of the bits of the results: equal on every machine for every arithmetic but bf16
  bool has_passed() const { return error <= tolerance; }
};

std::vector<SelfTestResult> self_test(const Kernels& kernels);

}  // namespace subsecond
