// Kernels for AVX-512 (F, BW, VL, DQ, CD): sixteen lanes are one register.

#include "../kernels.h"

#include <immintrin.h>

namespace subsecond::avx512 {
namespace {

#include "vector.inl.h"

// Products of pairs of 16-bit codes, added to 32-bit sums.
inline I dot_add(I sum, I a, I b) { return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(a.v, b.v))}; }

constexpr int kRowBlock = 8;
constexpr int kFloatRows = 4;
constexpr int kColumnBlock = 4;
constexpr int kScoreQueries = 12;
constexpr int kScoreVectors = 2;
constexpr int kValueQueries = 6;
constexpr int kValueVectors = 4;

#include "../f32_kernels.inl.h"

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels table = make_kernels("avx512");
  return table;
}

}  // namespace subsecond::avx512
