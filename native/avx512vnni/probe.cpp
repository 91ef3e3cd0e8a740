// What the VNNI dot products of AVX-512 do at most; see probe.h.

#include "../probe.h"

#include <immintrin.h>

namespace subsecond::avx512vnni {
namespace {

// A value that the compiler can neither foresee nor drop; it emits nothing.
inline void keep(__m512i& v) { __asm__ volatile("" : "+v"(v)); }

#include "../probe_chains.inl.h"

void dpbusd(int64_t num_rounds) {
  __m512i x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(5);
  keep(x), keep(y);
  run_chains(num_rounds, _mm512_setzero_si512(), [&](__m512i& sum) { sum = _mm512_dpbusd_epi32(sum, x, y); });
}

void dpwssd(int64_t num_rounds) {
  __m512i x = _mm512_set1_epi16(3), y = _mm512_set1_epi16(5);
  keep(x), keep(y);
  run_chains(num_rounds, _mm512_setzero_si512(), [&](__m512i& sum) { sum = _mm512_dpwssd_epi32(sum, x, y); });
}

constexpr Instruction kInstructions[] = {
    {"vpdpbusd zmm", kChains * 64 * 2, dpbusd},
    {"vpdpwssd zmm", kChains * 32 * 2, dpwssd},
};

}  // namespace

IsaProbe probe() { return {kInstructions, 2, nullptr}; }

}  // namespace subsecond::avx512vnni
