// Kernels for AVX2 with AVX-VNNI, its integer dot products.

#include "../kernels.h"

#include <immintrin.h>

namespace subsecond::avxvnni {
namespace {

#include "../avx2/vector.inl.h"

// Products of pairs of 16-bit codes, added to 32-bit sums.
inline I dot_add(I sum, I a, I b) {
  return {_mm256_dpwssd_avx_epi32(sum.low, a.low, b.low), _mm256_dpwssd_avx_epi32(sum.high, a.high, b.high)};
}

// Products of four unsigned bytes and four signed codes, added to 32-bit sums.
inline I dot_bytes_add(I sum, I bytes, I codes) {
  return {_mm256_dpbusd_avx_epi32(sum.low, bytes.low, codes.low),
          _mm256_dpbusd_avx_epi32(sum.high, bytes.high, codes.high)};
}
inline I dot_nibbles_add(I sum, I bytes, I codes) { return dot_bytes_add(sum, bytes, codes); }

constexpr int kByteOffset = 128;
constexpr int kRowBlock = 4;
constexpr int kPanelBlock = 1;
constexpr int kFloatRows = 2;
constexpr int kColumnBlock = 2;
constexpr int kByteRows = 2;
constexpr int kBytePanels = 2;
constexpr int kScoreQueries = 6;
constexpr int kScoreVectors = 1;
constexpr int kValueQueries = 6;
constexpr int kValueVectors = 1;

#include "../f32_kernels.inl.h"

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels table = make_kernels("avxvnni");
  return table;
}

}  // namespace subsecond::avxvnni
