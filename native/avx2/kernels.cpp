// Kernels for AVX2 with FMA and F16C: sixteen lanes are two registers.

#include "../kernels.h"

#include <immintrin.h>

namespace subsecond::avx2 {
namespace {

#include "vector.inl.h"

// Products of pairs of 16-bit codes, added to 32-bit sums.
inline I dot_add(I sum, I a, I b) {
  return {_mm256_add_epi32(sum.low, _mm256_madd_epi16(a.low, b.low)),
          _mm256_add_epi32(sum.high, _mm256_madd_epi16(a.high, b.high))};
}

constexpr int kRowBlock = 4;
constexpr int kFloatRows = 2;
constexpr int kColumnBlock = 2;
constexpr int kScoreQueries = 6;
constexpr int kScoreVectors = 1;
constexpr int kValueQueries = 6;
constexpr int kValueVectors = 1;

#include "../f32_kernels.inl.h"

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels table = make_kernels("avx2");
  return table;
}

}  // namespace subsecond::avx2
