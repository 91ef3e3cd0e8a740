// Kernels for AVX-512 with its VNNI dot products.

#include "../kernels.h"

#include <immintrin.h>

namespace subsecond::avx512vnni {
namespace {

#include "../avx512/vector.inl.h"

// Products of pairs of 16-bit codes, added to 32-bit sums.
inline I dot_add(I sum, I a, I b) { return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)}; }

// Products of four unsigned bytes and four signed codes, added to 32-bit sums.
inline I dot_bytes_add(I sum, I bytes, I codes) { return {_mm512_dpbusd_epi32(sum.v, bytes.v, codes.v)}; }
inline I dot_nibbles_add(I sum, I bytes, I codes) { return dot_bytes_add(sum, bytes, codes); }

constexpr int kByteOffset = 128;
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
  static constexpr Kernels table = make_kernels("avx512vnni");
  return table;
}

}  // namespace subsecond::avx512vnni
