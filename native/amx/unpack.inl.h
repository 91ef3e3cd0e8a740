// Packed tiles to bfloat16 [16 outputs][32 inputs], the operand that one TDPBF16PS reads; included by amx/linear.cpp.
//
// Codes of up to five bits become a table look-up: the values d q + m that a row's block can take are computed once,
// rounded to bfloat16, and VPERMW picks one for each code. That is five vector operations for 32 weights of four bits,
// where conversion of every code would take nine; 2.9 ns for 64 weights on one core of a Sapphire Rapids
// (docs/lab_log.md).

constexpr int kPrefetchBytes = 2048;  // ahead of the tile being unpacked, in the same stream

// The sixteen rows' scales, w = d * code + m: [n], or [n][2] where inputs 0..15 and 16..31 have their own.
struct alignas(64) Scales {
  float d[32];
  float m[32];
};

inline __m512 halves(const uint8_t* p) { return _mm512_cvtph_ps(load32(p)); }

inline __m512 signed_bytes(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(p))); }

struct TilePlace {
  const uint8_t* header;
  const uint8_t* tile;
};

template <Format F>
inline TilePlace find_tile(const uint8_t* panel, int64_t t) {
  constexpr FormatInfo info = format_info(F);
  const uint8_t* header = panel + t / info.tiles_per_super * info.super_bytes();
  return {header, header + info.header_bytes + t % info.tiles_per_super * info.tile_bytes};
}

inline void store_interleaved(float* out, V first, V second) {
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  _mm512_store_ps(out, _mm512_permutex2var_ps(first.v, low, second.v));
  _mm512_store_ps(out + 16, _mm512_permutex2var_ps(first.v, high, second.v));
}

inline V plain_nan(V v) {
  const __mmask16 is_nan = _mm512_cmp_ps_mask(v.v, v.v, _CMP_UNORD_Q);
  return {_mm512_mask_mov_ps(v.v, is_nan, _mm512_set1_ps(__builtin_nanf("")))};
}

// A NaN whose fraction is full would be rounded to zero by as_table.
inline RowScales plain_nans(RowScales scales) { return {plain_nan(scales.d), plain_nan(scales.m)}; }

// The scales of tile `t`. To be called some tiles before they are used, so that single values need not wait for the
// store of the whole vector.
template <Format F>
inline void read_scales(const uint8_t* panel, int64_t t, Scales& scales) {
  if constexpr (format_info(F).is_plain()) return;
  const auto [header, tile] = find_tile<F>(panel, t);
  const RowScales first = plain_nans(tile_scales<F>(header, tile, 0));
  if constexpr (format_info(F).num_scales() == 1) {
    _mm512_store_ps(scales.d, first.d.v);
    _mm512_store_ps(scales.m, first.m.v);
  } else {
    const RowScales second = plain_nans(tile_scales<F>(header, tile, 1));
    store_interleaved(scales.d, first.d, second.d);
    store_interleaved(scales.m, first.m, second.m);
  }
}

inline void store_row(uint16_t* out, __m512i row) { _mm512_store_si512(out, row); }

inline __m512i round_pair(__m512 low, __m512 high) { return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)); }

inline __m512 steps() { return _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }

// Sixteen float32 values, rounded half away from zero to bfloat16, are also 32 words of which the odd ones are the
// bfloat16 values: value i is word 2 i + 1.
inline __m512i as_table(__m512 values) {
  return _mm512_add_epi32(_mm512_castps_si512(values), _mm512_set1_epi32(0x8000));
}

// Indices of a row into such a table: rotating the packed words brings the code of input k to bits 1..4 of word k; what
// stands above is ignored.
inline __m512i table_indices(const uint8_t* codes) {
  const __m512i rotations =
      _mm512_set_epi64(0x0005000500050005, 0x0005000500050005, 0x0009000900090009, 0x0009000900090009,
                       0x000d000d000d000d, 0x000d000d000d000d, 0x0001000100010001, 0x0001000100010001);
  const __m512i words = _mm512_broadcast_i32x4(load16(codes));
  return _mm512_or_si512(_mm512_shldv_epi16(words, words, rotations), _mm512_set1_epi16(1));
}

// The same for codes of two bits, which come to bits [place, place + 2); the other bits of the index are those of
// `others`.
template <int place>
inline __m512i pair_indices(const uint8_t* codes, __m512i others) {
  constexpr auto four = [](int l) { return static_cast<int64_t>((place - 2 * l) & 15) * 0x0001000100010001; };
  const __m512i rotations = _mm512_set_epi64(four(7), four(6), four(5), four(4), four(3), four(2), four(1), four(0));
  int64_t stored;
  __builtin_memcpy(&stored, codes, 8);
  const __m512i words = _mm512_set1_epi64(stored);
  constexpr int and_or = 0xea;  // a & b | c
  return _mm512_ternarylogic_epi64(_mm512_shldv_epi16(words, words, rotations), _mm512_set1_epi16(3 << place), others,
                                   and_or);
}

// Index bits of such a table that are no code: the odd word, and bit 1 for inputs 16..31.
inline __m512i half_indices() { return _mm512_inserti64x4(_mm512_set1_epi16(1), _mm256_set1_epi16(3), 1); }

inline uint32_t high_mask(const uint8_t* high) {
  uint32_t mask;
  __builtin_memcpy(&mask, high, 4);
  return mask;
}

// The table of two rows: value 4 code + 2 (row % 2) + half.
template <Format F>
inline void unpack_two_bits(const uint8_t* tile, const Scales& scales, uint16_t* out) {
  const __m512 codes = _mm512_set_ps(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  const __m512i first = half_indices(), second = _mm512_or_si512(first, _mm512_set1_epi16(4));
#pragma GCC unroll 4
  for (int n = 0; n < 16; n += 2) {
    const __m512 d = _mm512_broadcast_f32x4(_mm_load_ps(scales.d + 2 * n));
    const __m512 m = _mm512_broadcast_f32x4(_mm_load_ps(scales.m + 2 * n));
    const __m512i table = as_table(_mm512_fmadd_ps(codes, d, m));
    const uint8_t* stored = tile + format_info(F).codes_at(n);
    store_row(out + 32 * n, _mm512_permutexvar_epi16(pair_indices<3>(stored, first), table));
    store_row(out + 32 * n + 32, _mm512_permutexvar_epi16(pair_indices<3>(stored + 8, second), table));
  }
}

// The table of a row: value 2 code + half.
template <Format F>
inline void unpack_three_bits(const uint8_t* tile, const Scales& scales, uint16_t* out) {
  const __m512 codes = _mm512_set_ps(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
  const auto both = [](const float* p) {
    double pair;
    __builtin_memcpy(&pair, p, 8);
    return _mm512_castpd_ps(_mm512_set1_pd(pair));
  };
#pragma GCC unroll 8
  for (int n = 0; n < 16; ++n) {
    const __m512i table = as_table(_mm512_fmadd_ps(codes, both(scales.d + 2 * n), both(scales.m + 2 * n)));
    const __m512i others = _mm512_mask_add_epi16(half_indices(), high_mask(tile + format_info(F).high_at(n)),
                                                 half_indices(), _mm512_set1_epi16(16));
    const __m512i indices = pair_indices<2>(tile + format_info(F).codes_at(n), others);
    store_row(out + 32 * n, _mm512_permutexvar_epi16(indices, table));
  }
}

// Four bits: `values` of the sixteen codes.
template <Format F>
inline void unpack_four_bits(const uint8_t* tile, const Scales& scales, __m512 values, uint16_t* out) {
#pragma GCC unroll 8
  for (int n = 0; n < 16; ++n) {
    const __m512 weights = _mm512_fmadd_ps(values, _mm512_set1_ps(scales.d[n]), _mm512_set1_ps(scales.m[n]));
    const __m512i indices = table_indices(tile + format_info(F).codes_at(n));
    store_row(out + 32 * n, _mm512_permutexvar_epi16(indices, as_table(weights)));
  }
}

// Five bits: the fifth chooses between two tables.
template <Format F>
inline void unpack_five_bits(const uint8_t* tile, const Scales& scales, uint16_t* out) {
  const __m512 upper_steps = _mm512_add_ps(steps(), _mm512_set1_ps(16.0f));
#pragma GCC unroll 8
  for (int n = 0; n < 16; ++n) {
    const __m512 d = _mm512_set1_ps(scales.d[n]), m = _mm512_set1_ps(scales.m[n]);
    const __m512i lower = as_table(_mm512_fmadd_ps(steps(), d, m));
    const __m512i upper = as_table(_mm512_fmadd_ps(upper_steps, d, m));
    const __m512i indices = table_indices(tile + format_info(F).codes_at(n));
    const __m512i row = _mm512_permutexvar_epi16(indices, lower);
    const uint32_t high = high_mask(tile + format_info(F).high_at(n));
    store_row(out + 32 * n, _mm512_mask_permutexvar_epi16(row, high, indices, upper));
  }
}

template <Format F>
inline void unpack_six_bits(const uint8_t* tile, const Scales& scales, uint16_t* out) {
  for (int n = 0; n < 16; ++n) {
    __m512 weights[2];
    for (int half = 0; half < 2; ++half) {
      const V codes = codes_u6(tile + format_info(F).codes_at(n), tile + format_info(F).high_at(n), half);
      const int scale = 2 * n + half;
      weights[half] = _mm512_fmadd_ps(codes.v, _mm512_set1_ps(scales.d[scale]), _mm512_set1_ps(scales.m[scale]));
    }
    store_row(out + 32 * n, round_pair(weights[0], weights[1]));
  }
}

inline void unpack_bytes(const uint8_t* tile, const Scales& scales, uint16_t* out) {
#pragma GCC unroll 4
  for (int n = 0; n < 16; ++n) {
    const __m512 scale = _mm512_set1_ps(scales.d[n]);
    const __m512 low = _mm512_mul_ps(signed_bytes(tile + 32 + 32 * n), scale);
    const __m512 high = _mm512_mul_ps(signed_bytes(tile + 48 + 32 * n), scale);
    store_row(out + 32 * n, round_pair(low, high));
  }
}

template <Format F>
inline void unpack_plain(const uint8_t* tile, uint16_t* out) {
  for (int n = 0; n < 16; ++n) {
    const uint8_t* row = tile + format_info(F).codes_at(n);
    if constexpr (F == Format::kBF16) {
      store_row(out + 32 * n, _mm512_loadu_si512(row));
    } else if constexpr (F == Format::kF16) {
      store_row(out + 32 * n, round_pair(halves(row), halves(row + 32)));
    } else {
      const float* values = reinterpret_cast<const float*>(row);
      store_row(out + 32 * n, round_pair(_mm512_loadu_ps(values), _mm512_loadu_ps(values + 16)));
    }
  }
}

// Tile `t` of a panel into `out`.
template <Format F>
inline void unpack_tile(const uint8_t* panel, int64_t t, const Scales& scales, uint16_t* out) {
  constexpr FormatInfo info = format_info(F);
  const uint8_t* tile = find_tile<F>(panel, t).tile;
  for (int i = 0; i < info.tile_bytes; i += 64)
    _mm_prefetch(reinterpret_cast<const char*>(tile) + kPrefetchBytes + i, _MM_HINT_T0);
  if constexpr (info.is_plain()) unpack_plain<F>(tile, out);
  if constexpr (info.codes == CodeFields::kTwoBits) unpack_two_bits<F>(tile, scales, out);
  if constexpr (info.codes == CodeFields::kThreeBits) unpack_three_bits<F>(tile, scales, out);
  if constexpr (info.codes == CodeFields::kFourBits) unpack_four_bits<F>(tile, scales, steps(), out);
  if constexpr (info.codes == CodeFields::kNonlinear) unpack_four_bits<F>(tile, scales, nonlinear_values(), out);
  if constexpr (info.codes == CodeFields::kFiveBits) unpack_five_bits<F>(tile, scales, out);
  if constexpr (info.codes == CodeFields::kSixBits) unpack_six_bits<F>(tile, scales, out);
  if constexpr (info.codes == CodeFields::kBytes) unpack_bytes(tile, scales, out);
}
