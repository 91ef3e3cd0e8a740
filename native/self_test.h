// Compares the kernels of an instruction set with the scalar ones on small made-up inputs, in some milliseconds.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace subsecond {

struct SelfTestResult {
  std::string kernel;  // operator and format, such as "linear_q4_1"
  double error;        // largest difference, relative to the largest value
  double tolerance;    // 0 for the f32 arithmetic, whose bits agree; a few roundings of bfloat16 otherwise
  uint64_t digest;     // of the bits of the results: equal on every machine for kernels of the f32 arithmetic
  bool has_passed() const { return error <= tolerance; }
};

std::vector<SelfTestResult> self_test(const Kernels& kernels);

}  // namespace subsecond
