// What AVX2 with FMA does at most; see probe.h.

#include "../probe.h"

#include <immintrin.h>

namespace subsecond::avx2 {
namespace {

// A value that the compiler can neither foresee nor drop; it emits nothing.
inline void keep(__m256i& v) { __asm__ volatile("" : "+x"(v)); }
inline void keep(__m256& v) { __asm__ volatile("" : "+x"(v)); }

#include "../probe_chains.inl.h"

void fma(int64_t num_rounds) {
  __m256 x = _mm256_set1_ps(0.5f), y = _mm256_set1_ps(1e-3f);
  keep(x), keep(y);
  run_chains(num_rounds, _mm256_set1_ps(1.0f), [&](__m256& sum) { sum = _mm256_fmadd_ps(x, y, sum); });
}

void maddwd(int64_t num_rounds) {
  __m256i x = _mm256_set1_epi16(3), y = _mm256_set1_epi16(5);
  run_chains(num_rounds, _mm256_setzero_si256(), [&](__m256i& sum) {
    keep(x);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x, y));
  });
}

void maddubsw(int64_t num_rounds) {
  __m256i x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(5);
  const __m256i ones = _mm256_set1_epi16(1);
  run_chains(num_rounds, _mm256_setzero_si256(), [&](__m256i& sum) {
    keep(x);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), ones));
  });
}

uint64_t read(const uint8_t* data, int64_t num_bytes) {
  __m256i sum = read_streams(
      data, num_bytes, _mm256_setzero_si256(),
      [](const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); },
      [](__m256i a, __m256i b) { return _mm256_add_epi64(a, b); });
  return static_cast<uint64_t>(_mm256_extract_epi64(sum, 0));
}

constexpr Instruction kInstructions[] = {
    {"vfmaddps ymm", kChains * 8 * 2, fma},
    {"vpmaddwd+vpaddd ymm", kChains * 16 * 2, maddwd},
    {"vpmaddubsw+vpmaddwd+vpaddd ymm", kChains * 32 * 2, maddubsw},
};

}  // namespace

IsaProbe probe() { return {kInstructions, 3, read}; }

}  // namespace subsecond::avx2
