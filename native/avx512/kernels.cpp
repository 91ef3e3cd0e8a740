// Kernels for AVX-512 (F, BW, VL, DQ, CD): sixteen lanes are one register.

#include "../kernels.h"

#include <immintrin.h>

namespace subsecond::avx512 {
namespace {

#include "vector.inl.h"

// Products of pairs of 16-bit codes, added to 32-bit sums.
inline I dot_add(I sum, I a, I b) { return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(a.v, b.v))}; }

// Products of four bytes less 128 and four signed codes, added to 32-bit sums: magnitudes of the weights, up to 128,
// times codes that took over their signs and are at most 127, so that no pair of products overflows 16 bits.
inline I dot_bytes_add(I sum, I bytes, I codes) {
  const __m512i weights = _mm512_xor_si512(bytes.v, _mm512_set1_epi8(-128));
  const __mmask64 is_negative = _mm512_movepi8_mask(weights);
  const __m512i turned = _mm512_mask_sub_epi8(codes.v, is_negative, _mm512_setzero_si512(), codes.v);
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(weights), turned);
  return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}

// The same of bytes below 16 as they are.
inline I dot_nibbles_add(I sum, I bytes, I codes) {
  const __m512i pairs = _mm512_maddubs_epi16(bytes.v, codes.v);
  return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}

constexpr int kByteOffset = 0;
constexpr int kRowBlock = 4;
constexpr int kPanelBlock = 4;
constexpr int kFloatRows = 4;
constexpr int kColumnBlock = 4;
constexpr int kByteRows = 6;
constexpr int kBytePanels = 4;
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
