// What AVX-VNNI does at most; see probe.h.

#include "../probe.h"

#include <immintrin.h>

namespace subsecond::avxvnni {
namespace {

// A value that the compiler can neither foresee nor drop; it emits nothing.
inline void keep(__m256i& v) { __asm__ volatile("" : "+x"(v)); }

#include "../probe_chains.inl.h"

void dpbusd(int64_t num_rounds) {
  __m256i x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(5);
  keep(x), keep(y);
  run_chains(num_rounds, _mm256_setzero_si256(), [&](__m256i& sum) { sum = _mm256_dpbusd_avx_epi32(sum, x, y); });
}

void dpwssd(int64_t num_rounds) {
  __m256i x = _mm256_set1_epi16(3), y = _mm256_set1_epi16(5);
  keep(x), keep(y);
  run_chains(num_rounds, _mm256_setzero_si256(), [&](__m256i& sum) { sum = _mm256_dpwssd_avx_epi32(sum, x, y); });
}

constexpr Instruction kInstructions[] = {
    {"vpdpbusd ymm", kChains * 32 * 2, dpbusd},
    {"vpdpwssd ymm", kChains * 16 * 2, dpwssd},
};

}  // namespace

IsaProbe probe() { return {kInstructions, 2, nullptr}; }

}  // namespace subsecond::avxvnni
