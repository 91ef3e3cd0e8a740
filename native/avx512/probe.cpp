// What AVX-512 does at most; see probe.h.

#include "../probe.h"

#include <immintrin.h>

namespace subsecond::avx512 {
namespace {

// A value that the compiler can neither foresee nor drop; it emits nothing.
inline void keep(__m512i& v) { __asm__ volatile("" : "+v"(v)); }
inline void keep(__m512& v) { __asm__ volatile("" : "+v"(v)); }

#include "../probe_chains.inl.h"

void fma(int64_t num_rounds) {
  __m512 x = _mm512_set1_ps(0.5f), y = _mm512_set1_ps(1e-3f);
  keep(x), keep(y);
  run_chains(num_rounds, _mm512_set1_ps(1.0f), [&](__m512& sum) { sum = _mm512_fmadd_ps(x, y, sum); });
}

void maddwd(int64_t num_rounds) {
  __m512i x = _mm512_set1_epi16(3), y = _mm512_set1_epi16(5);
  run_chains(num_rounds, _mm512_setzero_si512(), [&](__m512i& sum) {
    keep(x);
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(x, y));
  });
}

void maddubsw(int64_t num_rounds) {
  __m512i x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(5);
  const __m512i ones = _mm512_set1_epi16(1);
  run_chains(num_rounds, _mm512_setzero_si512(), [&](__m512i& sum) {
    keep(x);
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(x, y), ones));
  });
}

uint64_t read(const uint8_t* data, int64_t num_bytes) {
  const __m512i sum = read_streams(
      data, num_bytes, _mm512_setzero_si512(), [](const uint8_t* p) { return _mm512_loadu_si512(p); },
      [](__m512i a, __m512i b) { return _mm512_add_epi64(a, b); });
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm512_castsi512_si128(sum)));
}

constexpr Instruction kInstructions[] = {
    {"vfmaddps zmm", kChains * 16 * 2, fma},
    {"vpmaddwd+vpaddd zmm", kChains * 32 * 2, maddwd},
    {"vpmaddubsw+vpmaddwd+vpaddd zmm", kChains * 64 * 2, maddubsw},
};

}  // namespace

IsaProbe probe() { return {kInstructions, 3, read}; }

}  // namespace subsecond::avx512
