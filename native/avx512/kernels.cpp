// Kernels for AVX-512 (F, BW, VL, DQ): sixteen lanes are one register.

#include "../kernels.h"

#include <immintrin.h>

namespace subsecond::avx512 {
namespace {

#include "vector.inl.h"

constexpr int kRowBlock = 4;
constexpr int kSingleRows = 8;
constexpr int kColumnBlock = 4;

#include "../f32_kernels.inl.h"

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels table = make_kernels("avx512");
  return table;
}

}  // namespace subsecond::avx512
