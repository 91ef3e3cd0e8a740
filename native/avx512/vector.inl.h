// Sixteen floats, or sixteen words of 32 bits, in one AVX-512 register, and the code readers; included inside a
// namespace by avx512, avx512vnni and amx kernels.

struct V {
  __m512 v;

  static __mmask16 lanes(int n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1); }
  static V load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static V load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(lanes(n), p)}; }
  static void store(float* p, V a) { _mm512_storeu_ps(p, a.v); }
  static void store_n(float* p, V a, int n) { _mm512_mask_storeu_ps(p, lanes(n), a.v); }
  // IEEE half precision, ties to even.
  static void store_half(uint16_t* p, V a) {
    const __m256i halves = _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves);
  }
  static V set1(float x) { return {_mm512_set1_ps(x)}; }
  static V add(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
  static V sub(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
  static V mul(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static V div(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
  static V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static V max(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
  static V min(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
  static V round(V a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  static V pow2(V n) {
    const __m512i bits = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 23))};
  }
  // The lowest nine bits become sign and exponent.
  static V to_exponent(V a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 23))}; }
  static V keep_first(V a, int n, float other) { return {_mm512_mask_blend_ps(lanes(n), _mm512_set1_ps(other), a.v)}; }
  static V drop_first(V a, int n, float other) { return {_mm512_mask_blend_ps(lanes(n), a.v, _mm512_set1_ps(other))}; }
  static __m256 upper(__m512 a) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)); }
  static float sum(V a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), upper(a.v));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float largest(V a) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.v), upper(a.v));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  static float first(V a) { return _mm512_cvtss_f32(a.v); }
  // Lane i is lane i ^ step.
  template <int step>
  static V exchange(V a) {
    if constexpr (step == 1) return {_mm512_permute_ps(a.v, 0xb1)};
    if constexpr (step == 2) return {_mm512_permute_ps(a.v, 0x4e)};
    return {_mm512_shuffle_f32x4(a.v, a.v, step == 4 ? 0xb1 : 0x4e)};
  }
};

inline float half_to_float(const uint8_t* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, 2);
  return _cvtsh_ss(bits);
}

inline __m128i load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

inline __m256i load32(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

inline V codes_f16(const uint8_t* p) { return {_mm512_cvtph_ps(load32(p))}; }

// Sixteen weights, of which those whose bits are set follow each other at p; the others are zero.
inline V expand_halves(const uint8_t* p, uint32_t mask) {
  return {_mm512_maskz_expand_ps(static_cast<__mmask16>(mask), _mm512_cvtph_ps(load32(p)))};
}

#include "../gather.inl.h"

inline V gather_lanes(const float* x, const uint8_t* indices) {
  __m512 v = _mm512_castps128_ps512(gather_four(x, indices));
  v = _mm512_insertf32x4(v, gather_four(x, indices + 8), 1);
  v = _mm512_insertf32x4(v, gather_four(x, indices + 16), 2);
  return {_mm512_insertf32x4(v, gather_four(x, indices + 24), 3)};
}

inline V codes_bf16(const uint8_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load32(p)), 16))};
}

// Two neighbouring fields of `width` bits of eight words: inputs 16 half .. 16 half + 15.
inline __m512i fields(__m256i words, int half, int width) {
  const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(words), words, 1);
  const __m512i step = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi32(width), 1);
  const __m512i shift = _mm512_add_epi32(step, _mm512_set1_epi32(2 * width * half));
  return _mm512_and_si512(_mm512_srlv_epi32(both, shift), _mm512_set1_epi32((1 << width) - 1));
}

inline __m512i nibbles(const uint8_t* p, int half) { return fields(_mm256_cvtepu16_epi32(load16(p)), half, 4); }

// Two-bit fields of four words: inputs 16 half .. 16 half + 15.
inline __m512i pairs(const uint8_t* p, int half) {
  const __m128i words = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m512i shift =
      _mm512_add_epi32(_mm512_set_epi32(6, 6, 6, 6, 4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0), _mm512_set1_epi32(8 * half));
  return _mm512_and_si512(_mm512_srlv_epi32(_mm512_broadcast_i32x4(words), shift), _mm512_set1_epi32(3));
}

inline V with_high_bits(__m512i codes, const uint8_t* high, int half, int place) {
  uint16_t bits;
  __builtin_memcpy(&bits, high + 2 * half, 2);
  return {_mm512_cvtepi32_ps(_mm512_mask_or_epi32(codes, bits, codes, _mm512_set1_epi32(1 << place)))};
}

inline V codes_u2(const uint8_t* p, int half) { return {_mm512_cvtepi32_ps(pairs(p, half))}; }

inline V codes_u3(const uint8_t* p, const uint8_t* high, int half) {
  return with_high_bits(pairs(p, half), high, half, 2);
}

inline V codes_u4(const uint8_t* p, int half) { return {_mm512_cvtepi32_ps(nibbles(p, half))}; }

inline V codes_u5(const uint8_t* p, const uint8_t* high, int half) {
  return with_high_bits(nibbles(p, half), high, half, 4);
}

inline V codes_u6(const uint8_t* p, const uint8_t* high, int half) {
  const __m512i top = fields(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(high))), half, 2);
  return {_mm512_cvtepi32_ps(_mm512_or_si512(nibbles(p, half), _mm512_slli_epi32(top, 4)))};
}

inline __m512 nonlinear_values() {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(reinterpret_cast<const uint8_t*>(kNonlinearValues))));
}

inline V codes_nonlinear(const uint8_t* p, int half) {
  return {_mm512_permutexvar_ps(nibbles(p, half), nonlinear_values())};
}

inline V codes_s8(const uint8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(p)))}; }

// Sixteen lanes of 32 bits, most often pairs of signed 16-bit codes.
struct I {
  __m512i v;

  static I load(const void* p) { return {_mm512_loadu_si512(p)}; }
  static void store(void* p, I a) { _mm512_storeu_si512(p, a.v); }
  static I set1(int32_t x) { return {_mm512_set1_epi32(x)}; }
  static I zero() { return {_mm512_setzero_si512()}; }
  static I in_order(I a) { return a; }
  static I both(I a, I b) { return {_mm512_and_si512(a.v, b.v)}; }
  // a | (b & mask)
  static I add_bits(I a, I b, I mask) { return {_mm512_ternarylogic_epi32(a.v, b.v, mask.v, 0xf8)}; }
  // 16-bit words shifted to the right, or to the left where n is negative.
  template <int n>
  static I shift(I a) {
    if constexpr (n > 0) return {_mm512_srli_epi16(a.v, n)};
    if constexpr (n < 0) return {_mm512_slli_epi16(a.v, -n)};
    return a;
  }
  // High bytes of 16-bit words with their signs.
  static I high_bytes(I a) { return {_mm512_srai_epi16(a.v, 8)}; }
  // High words shifted to the right by one.
  static I shift_high_words(I a) { return {_mm512_srlv_epi16(a.v, _mm512_set1_epi32(0x10000))}; }
  // Bytes `order` of every lane; 0x80 gives zero.
  static I shuffle(I a, uint32_t order) {
    const __m512i lanes = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c));
    return {_mm512_shuffle_epi8(a.v, _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(order)), lanes))};
  }
  static I look_up(const int8_t* table, I bytes) {
    return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(load16(reinterpret_cast<const uint8_t*>(table))), bytes.v)};
  }
  static I add(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
  static I add_bytes(I a, I b) { return {_mm512_add_epi8(a.v, b.v)}; }
  static I multiply(I a, I b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
  static I multiply_words(I a, I b) { return {_mm512_mullo_epi16(a.v, b.v)}; }
  // Eight bytes: their low four bits in lanes 0..7, the high ones in lanes 8..15.
  static I nibble_lanes(const uint8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i all = _mm_unpacklo_epi64(bytes, _mm_srli_epi16(bytes, 4));
    return {_mm512_cvtepu8_epi32(_mm_and_si128(all, _mm_set1_epi8(15)))};
  }
  static V to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
};

// Sixteen rows of sixteen bytes, four a register: lane n of out[v] is word v of row n.
inline void transpose_rows(__m512i r0, __m512i r1, __m512i r2, __m512i r3, I (&out)[4]) {
  const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(2));
  const __m512i a = _mm512_permutex2var_epi32(r0, first, r1), b = _mm512_permutex2var_epi32(r2, first, r3);
  const __m512i c = _mm512_permutex2var_epi32(r0, second, r1), d = _mm512_permutex2var_epi32(r2, second, r3);
  out[0].v = _mm512_shuffle_i64x2(a, b, 0x44);
  out[1].v = _mm512_shuffle_i64x2(a, b, 0xee);
  out[2].v = _mm512_shuffle_i64x2(c, d, 0x44);
  out[3].v = _mm512_shuffle_i64x2(c, d, 0xee);
}

// Half 0 or 1 of four rows of 32 bytes.
template <int half>
inline __m512i load_halves(const uint8_t* p) {
  return _mm512_shuffle_i64x2(_mm512_loadu_si512(p), _mm512_loadu_si512(p + 64), half ? 0xdd : 0x88);
}

// Sixteen bytes from `start` on of sixteen rows that are `stride` bytes apart (16 or 32).
template <int stride, int start>
inline void transpose_four(const uint8_t* p, I (&out)[4]) {
  if constexpr (stride == 16)
    transpose_rows(_mm512_loadu_si512(p), _mm512_loadu_si512(p + 64), _mm512_loadu_si512(p + 128),
                   _mm512_loadu_si512(p + 192), out);
  else
    transpose_rows(load_halves<start / 16>(p), load_halves<start / 16>(p + 128), load_halves<start / 16>(p + 256),
                   load_halves<start / 16>(p + 384), out);
}

// The same for rows of eight bytes side by side.
inline void transpose_two(const uint8_t* p, I (&out)[2]) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + 64);
  out[0].v = _mm512_permutex2var_epi32(a, even, b);
  out[1].v = _mm512_permutex2var_epi32(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
}

// Integral floats within 16 bits.
inline void store_words(int16_t* p, V v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v.v)));
}

// Integral floats within 8 bits.
inline void store_bytes(int8_t* p, V v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v.v)));
}
