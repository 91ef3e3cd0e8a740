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

// Products of four bytes less 128 and four signed codes, added to 32-bit sums: magnitudes of the weights, up to 128,
// times codes that took over their signs and are at most 127, so that no pair of products overflows 16 bits.
inline __m256i dot_bytes_add(__m256i sum, __m256i bytes, __m256i codes) {
  const __m256i weights = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(codes, weights));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline I dot_bytes_add(I sum, I bytes, I codes) {
  return {dot_bytes_add(sum.low, bytes.low, codes.low), dot_bytes_add(sum.high, bytes.high, codes.high)};
}

// The same of bytes below 16 as they are.
inline __m256i dot_nibbles_add(__m256i sum, __m256i bytes, __m256i codes) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, codes), _mm256_set1_epi16(1)));
}
inline I dot_nibbles_add(I sum, I bytes, I codes) {
  return {dot_nibbles_add(sum.low, bytes.low, codes.low), dot_nibbles_add(sum.high, bytes.high, codes.high)};
}

constexpr int kByteOffset = 0;
constexpr int kRowBlock = 4;
constexpr int kPanelBlock = 1;
constexpr int kFloatRows = 2;
constexpr int kColumnBlock = 2;
constexpr int kByteRows = 4;
constexpr int kBytePanels = 1;
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
