// Sixteen floats, or sixteen words of 32 bits, in two AVX2 registers, and the code readers; included inside a namespace
// by avx2 and avxvnni kernels.

inline __m256i lane_mask(int n) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes);
}

inline __m128 fold(__m256 v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }

struct V {
  __m256 low, high;

  static V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static V load_n(const float* p, int n) {
    return {_mm256_maskload_ps(p, lane_mask(n)), _mm256_maskload_ps(p + 8, lane_mask(n - 8))};
  }
  static void store(float* p, V v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
  }
  static void store_n(float* p, V v, int n) {
    _mm256_maskstore_ps(p, lane_mask(n), v.low);
    _mm256_maskstore_ps(p + 8, lane_mask(n - 8), v.high);
  }
  // IEEE half precision, ties to even.
  static void store_half(uint16_t* p, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(v.high, _MM_FROUND_TO_NEAREST_INT));
  }
  static V set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static V add(V a, V b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static V sub(V a, V b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
  static V mul(V a, V b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static V div(V a, V b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
  static V fma(V a, V b, V c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static V max(V a, V b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
  static V min(V a, V b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
  static V round(V a) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, mode), _mm256_round_ps(a.high, mode)};
  }
  static __m256 pow2_half(__m256 n) {
    const __m256i bits = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23));
  }
  static V pow2(V n) { return {pow2_half(n.low), pow2_half(n.high)}; }
  // The lowest nine bits become sign and exponent.
  static __m256 to_exponent_half(__m256 v) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 23));
  }
  static V to_exponent(V v) { return {to_exponent_half(v.low), to_exponent_half(v.high)}; }
  static V keep_first(V v, int n, float other) {
    const __m256 filler = _mm256_set1_ps(other);
    return {_mm256_blendv_ps(filler, v.low, _mm256_castsi256_ps(lane_mask(n))),
            _mm256_blendv_ps(filler, v.high, _mm256_castsi256_ps(lane_mask(n - 8)))};
  }
  static V drop_first(V v, int n, float other) {
    const __m256 filler = _mm256_set1_ps(other);
    return {_mm256_blendv_ps(v.low, filler, _mm256_castsi256_ps(lane_mask(n))),
            _mm256_blendv_ps(v.high, filler, _mm256_castsi256_ps(lane_mask(n - 8)))};
  }
  static float sum(V v) {
    const __m128 four = fold(_mm256_add_ps(v.low, v.high));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float largest(V v) {
    const __m256 eight = _mm256_max_ps(v.low, v.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  static float first(V v) { return _mm256_cvtss_f32(v.low); }
  // Lane i is lane i ^ step.
  template <int step>
  static __m256 exchange_half(__m256 a) {
    if constexpr (step == 4) return _mm256_permute2f128_ps(a, a, 1);
    return _mm256_permute_ps(a, step == 1 ? 0xb1 : 0x4e);
  }
  template <int step>
  static V exchange(V a) {
    if constexpr (step == 8) return {a.high, a.low};
    return {exchange_half<step>(a.low), exchange_half<step>(a.high)};
  }
};

inline float half_to_float(const uint8_t* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, 2);
  return _cvtsh_ss(bits);
}

inline __m128i load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

inline V to_float(__m256i low, __m256i high) { return {_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)}; }

inline V codes_f16(const uint8_t* p) { return {_mm256_cvtph_ps(load16(p)), _mm256_cvtph_ps(load16(p + 16))}; }

// For every mask of eight bits: where the bytes of eight halves are that follow each other where the bits are set;
// bytes of 0x80 make zeros.
struct ExpandOrders {
  alignas(64) uint8_t bytes[256][16];
};
inline constexpr ExpandOrders kExpandOrders = [] {
  ExpandOrders orders{};
  for (int mask = 0; mask < 256; ++mask)
    for (int i = 0, from = 0; i < 8; ++i) {
      const bool is_set = mask >> i & 1;
      orders.bytes[mask][2 * i] = static_cast<uint8_t>(is_set ? from++ : 0x80);
      orders.bytes[mask][2 * i + 1] = static_cast<uint8_t>(is_set ? from++ : 0x80);
    }
  return orders;
}();

inline __m256 expand_eight(const uint8_t* p, uint32_t mask) {
  return _mm256_cvtph_ps(_mm_shuffle_epi8(load16(p), load16(kExpandOrders.bytes[mask])));
}

// Sixteen weights, of which those whose bits are set follow each other at p; the others are zero.
inline V expand_halves(const uint8_t* p, uint32_t mask) {
  const uint32_t first = mask & 255;
  return {expand_eight(p, first), expand_eight(p + 2 * __builtin_popcount(first), mask >> 8)};
}

#include "../gather.inl.h"

inline __m256 gather_eight(const float* x, const uint8_t* indices) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(gather_four(x, indices)), gather_four(x, indices + 8), 1);
}

inline V gather_lanes(const float* x, const uint8_t* indices) {
  return {gather_eight(x, indices), gather_eight(x, indices + 16)};
}

inline __m256 widen_bf16(__m128i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }

inline V codes_bf16(const uint8_t* p) { return {widen_bf16(load16(p)), widen_bf16(load16(p + 16))}; }

struct Codes {
  __m256i low, high;
};

// Bits [shift, shift + width) and the next `width` of eight words: inputs 16 half .. 16 half + 15.
inline Codes fields(__m256i words, int half, int width) {
  const __m256i mask = _mm256_set1_epi32((1 << width) - 1);
  const __m256i first = _mm256_srli_epi32(words, 2 * width * half);
  return {_mm256_and_si256(first, mask), _mm256_and_si256(_mm256_srli_epi32(first, width), mask)};
}

// Eight two-bit fields of four words: inputs 16 half .. 16 half + 15 begin at bit 8 half.
inline Codes pairs(const uint8_t* p, int half) {
  const __m128i words = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m256i first = _mm256_srlv_epi32(_mm256_broadcastsi128_si256(_mm_srli_epi32(words, 8 * half)),
                                          _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2));
  const __m256i mask = _mm256_set1_epi32(3);
  return {_mm256_and_si256(first, mask), _mm256_and_si256(_mm256_srli_epi32(first, 4), mask)};
}

inline Codes nibbles(const uint8_t* p, int half) { return fields(_mm256_cvtepu16_epi32(load16(p)), half, 4); }

inline V codes_u4(const uint8_t* p, int half) {
  const Codes codes = nibbles(p, half);
  return to_float(codes.low, codes.high);
}

// Bits 8 group .. 8 group + 7 of a word, one a lane, at bit `place`: taken to the top of the lane and back down.
inline __m256i high_bits(__m256i word, int group, int place) {
  const __m256i to_top = _mm256_sub_epi32(_mm256_set1_epi32(31 - 8 * group), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const __m256i bits = _mm256_srli_epi32(_mm256_sllv_epi32(word, to_top), 31 - place);
  return _mm256_and_si256(bits, _mm256_set1_epi32(1 << place));
}

inline V with_high_bits(Codes codes, const uint8_t* high, int half, int place) {
  int32_t stored;
  __builtin_memcpy(&stored, high, 4);
  const __m256i word = _mm256_set1_epi32(stored);
  return to_float(_mm256_or_si256(codes.low, high_bits(word, 2 * half, place)),
                  _mm256_or_si256(codes.high, high_bits(word, 2 * half + 1, place)));
}

inline V codes_u2(const uint8_t* p, int half) {
  const Codes codes = pairs(p, half);
  return to_float(codes.low, codes.high);
}

inline V codes_u3(const uint8_t* p, const uint8_t* high, int half) {
  return with_high_bits(pairs(p, half), high, half, 2);
}

inline V codes_u5(const uint8_t* p, const uint8_t* high, int half) {
  return with_high_bits(nibbles(p, half), high, half, 4);
}

inline V codes_u6(const uint8_t* p, const uint8_t* high, int half) {
  const Codes codes = nibbles(p, half);
  const Codes top = fields(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(high))), half, 2);
  return to_float(_mm256_or_si256(codes.low, _mm256_slli_epi32(top.low, 4)),
                  _mm256_or_si256(codes.high, _mm256_slli_epi32(top.high, 4)));
}

// The looked-up byte, taken to the top of its lane and back down with its sign; the other bytes are shifted out.
inline __m256i nonlinear(__m256i codes) {
  const __m256i table = _mm256_broadcastsi128_si256(load16(reinterpret_cast<const uint8_t*>(kNonlinearValues)));
  return _mm256_srai_epi32(_mm256_slli_epi32(_mm256_shuffle_epi8(table, codes), 24), 24);
}

inline V codes_nonlinear(const uint8_t* p, int half) {
  const Codes codes = nibbles(p, half);
  return to_float(nonlinear(codes.low), nonlinear(codes.high));
}

inline __m256i widen_s8(const uint8_t* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}

inline V codes_s8(const uint8_t* p) { return to_float(widen_s8(p), widen_s8(p + 8)); }

// Sixteen lanes of 32 bits, most often pairs of signed 16-bit codes.
struct I {
  __m256i low, high;

  static I load(const void* p) {
    const __m256i* v = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
  }
  static void store(void* p, I a) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), a.low);
    _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, a.high);
  }
  static I set1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
  static I zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  // A value that is the same in both halves, loaded after what stands before it: a compiler that loads several first
  // has no register left for one of the sums, and its way through memory takes half of the time.
  static I in_order(I a) {
    asm volatile("" : "+x"(a.low));
    return {a.low, a.low};
  }
  static I both(I a, I b) { return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)}; }
  static I add_bits(I a, I b, I mask) {
    const I bits = both(b, mask);
    return {_mm256_or_si256(a.low, bits.low), _mm256_or_si256(a.high, bits.high)};
  }
  // 16-bit words shifted to the right, or to the left where n is negative.
  template <int n>
  static I shift(I a) {
    if constexpr (n > 0) return {_mm256_srli_epi16(a.low, n), _mm256_srli_epi16(a.high, n)};
    if constexpr (n < 0) return {_mm256_slli_epi16(a.low, -n), _mm256_slli_epi16(a.high, -n)};
    return a;
  }
  // High bytes of 16-bit words with their signs.
  static I high_bytes(I a) { return {_mm256_srai_epi16(a.low, 8), _mm256_srai_epi16(a.high, 8)}; }
  // High words shifted to the right by one.
  static __m256i shift_high_words(__m256i a) { return _mm256_blend_epi16(a, _mm256_srli_epi16(a, 1), 0xaa); }
  static I shift_high_words(I a) { return {shift_high_words(a.low), shift_high_words(a.high)}; }
  // Bytes `order` of every lane; 0x80 gives zero.
  static I shuffle(I a, uint32_t order) {
    const __m256i lanes =
        _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c);
    const __m256i bytes = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int32_t>(order)), lanes);
    return {_mm256_shuffle_epi8(a.low, bytes), _mm256_shuffle_epi8(a.high, bytes)};
  }
  static I look_up(const int8_t* table, I bytes) {
    const __m256i values = _mm256_broadcastsi128_si256(load16(reinterpret_cast<const uint8_t*>(table)));
    return {_mm256_shuffle_epi8(values, bytes.low), _mm256_shuffle_epi8(values, bytes.high)};
  }
  static I add(I a, I b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
  static I add_bytes(I a, I b) { return {_mm256_add_epi8(a.low, b.low), _mm256_add_epi8(a.high, b.high)}; }
  static I multiply(I a, I b) { return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)}; }
  static I multiply_words(I a, I b) { return {_mm256_mullo_epi16(a.low, b.low), _mm256_mullo_epi16(a.high, b.high)}; }
  // Eight bytes: their low four bits in lanes 0..7, the high ones in lanes 8..15.
  static I nibble_lanes(const uint8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), low_bits = _mm_set1_epi8(15);
    return {_mm256_cvtepu8_epi32(_mm_and_si128(bytes, low_bits)),
            _mm256_cvtepu8_epi32(_mm_and_si128(_mm_srli_epi16(bytes, 4), low_bits))};
  }
  static V to_float(I a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
};

// Rows n and n + 4.
template <int stride>
inline __m256i load_rows(const uint8_t* p) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p)), load16(p + 4 * stride), 1);
}

// Dwords 0 to 3 of eight rows.
template <int stride>
inline void transpose_eight(const uint8_t* p, __m256i (&out)[4]) {
  const __m256i r0 = load_rows<stride>(p), r1 = load_rows<stride>(p + stride), r2 = load_rows<stride>(p + 2 * stride),
                r3 = load_rows<stride>(p + 3 * stride);
  const __m256i a = _mm256_unpacklo_epi32(r0, r1), b = _mm256_unpackhi_epi32(r0, r1);
  const __m256i c = _mm256_unpacklo_epi32(r2, r3), d = _mm256_unpackhi_epi32(r2, r3);
  out[0] = _mm256_unpacklo_epi64(a, c);
  out[1] = _mm256_unpackhi_epi64(a, c);
  out[2] = _mm256_unpacklo_epi64(b, d);
  out[3] = _mm256_unpackhi_epi64(b, d);
}

// Sixteen bytes from `start` on of sixteen rows that are `stride` bytes apart: lane n of out[v] is word v of row n.
template <int stride, int start>
inline void transpose_four(const uint8_t* p, I (&out)[4]) {
  __m256i low[4], high[4];
  transpose_eight<stride>(p + start, low);
  transpose_eight<stride>(p + start + 8 * stride, high);
  for (int v = 0; v < 4; ++v) out[v] = {low[v], high[v]};
}

template <int word>
inline __m256i gather_eight(const uint8_t* p) {
  const __m256 a = _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  const __m256 b = _mm256_loadu_ps(reinterpret_cast<const float*>(p + 32));
  const __m256i rows = _mm256_castps_si256(_mm256_shuffle_ps(a, b, word ? 0xdd : 0x88));
  return _mm256_permute4x64_epi64(rows, 0xd8);
}

// The same for rows of eight bytes side by side.
inline void transpose_two(const uint8_t* p, I (&out)[2]) {
  out[0] = {gather_eight<0>(p), gather_eight<0>(p + 64)};
  out[1] = {gather_eight<1>(p), gather_eight<1>(p + 64)};
}

// Integral floats within 16 bits.
inline void store_words(int16_t* p, V v) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.low), _mm256_cvtps_epi32(v.high));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(words, 0xd8));
}

// Integral floats within 8 bits.
inline void store_bytes(int8_t* p, V v) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.low), _mm256_cvtps_epi32(v.high));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
