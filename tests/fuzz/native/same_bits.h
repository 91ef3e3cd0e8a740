// Compares what two instruction sets of one arithmetic computed: equal bits, NaN for NaN.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace subsecond::fuzz {

// Linears of all sets of this arithmetic give the same bits.
inline bool has_exact_linears(const Kernels& kernels) { return std::strcmp(kernels.arithmetic, "i16") == 0; }
// Attention of all sets with this type of keys and values gives the same bits.
inline bool has_exact_attention(const AttentionKernels& attention) {
  return std::strcmp(attention.kv_type, "bf16") != 0;
}

inline void check_same(const char* what, const Kernels& kernels, const char* detail, const float* expected,
                       const float* actual, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (std::isnan(expected[i]) && std::isnan(actual[i])) continue;
    if (std::memcmp(expected + i, actual + i, sizeof(float)) == 0) continue;
    std::fprintf(stderr, "%s of %s, %s: value %zu is %a, scalar kernels give %a\n", what, kernels.isa, detail, i,
                 static_cast<double>(actual[i]), static_cast<double>(expected[i]));
    std::abort();
  }
}

}  // namespace subsecond::fuzz
