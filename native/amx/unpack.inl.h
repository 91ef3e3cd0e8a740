// Packed tiles to bfloat16 [16 outputs][32 inputs], the operand that one TDPBF16PS reads; included by amx/linear.cpp.
//
// Four- and five-bit codes become a table look-up: the sixteen (32) values d q + m of a row's block are computed once,
// rounded to bfloat16, and VPERMW picks one for each code. That is five vector operations for 32 weights of four bits,
// where conversion of every code would take nine; 2.9 ns for 64 weights on one core of a Sapphire Rapids
// (docs/lab_log.md).

constexpr int kPrefetchBytes = 2048;  // ahead of the tile being unpacked, in the same stream

struct alignas(64) Scales {
  float d[16];
  float m[16];
};

inline __m512 halves(const uint8_t* p) { return _mm512_cvtph_ps(load32(p)); }

inline __m512 signed_bytes(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(p))); }

inline __m512 unsigned_bytes(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load16(p))); }

struct TilePlace {
  const uint8_t* header;
  const uint8_t* tile;
};

template <Format F>
inline TilePlace find_tile(const uint8_t* panel, int64_t t) {
  constexpr FormatInfo info = kFormats[static_cast<int>(F)];
  constexpr int64_t super_bytes = info.header_bytes + info.tiles_per_super * info.tile_bytes;
  const uint8_t* header = panel + t / info.tiles_per_super * super_bytes;
  return {header, header + info.header_bytes + t % info.tiles_per_super * info.tile_bytes};
}

// The sixteen rows' d and m of tile `t`: w = d * code + m. Of Q6_K the scales of inputs 0..15 and 16..31 instead.
//
// To be called some tiles before they are used, so that single values need not wait for the store of the whole vector.
template <Format F>
inline void read_scales(const uint8_t* panel, int64_t t, Scales& scales) {
  if constexpr (F <= Format::kBF16) return;
  const auto [header, tile] = find_tile<F>(panel, t);
  __m512 d = halves(F >= Format::kQ4_K ? header : tile), m = _mm512_setzero_ps();
  if constexpr (F == Format::kQ4_1) m = halves(tile + 32);
  if constexpr (F == Format::kQ4_0) m = _mm512_mul_ps(d, _mm512_set1_ps(-8.0f));
  if constexpr (F == Format::kQ4_K) m = _mm512_sub_ps(m, _mm512_mul_ps(halves(header + 32), unsigned_bytes(tile + 16)));
  if constexpr (F == Format::kQ6_K) m = _mm512_mul_ps(d, signed_bytes(tile + 16));
  if constexpr (F == Format::kQ4_K) d = _mm512_mul_ps(d, unsigned_bytes(tile));
  if constexpr (F == Format::kQ6_K) d = _mm512_mul_ps(d, signed_bytes(tile));
  _mm512_store_ps(scales.d, d);
  _mm512_store_ps(scales.m, m);
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

template <Format F>
inline void unpack_nibbles(const uint8_t* codes, const Scales& scales, uint16_t* out) {
#pragma GCC unroll 8
  for (int n = 0; n < 16; ++n) {
    const __m512 values = _mm512_fmadd_ps(steps(), _mm512_set1_ps(scales.d[n]), _mm512_set1_ps(scales.m[n]));
    store_row(out + 32 * n, _mm512_permutexvar_epi16(table_indices(codes + 16 * n), as_table(values)));
  }
}

// Five bits: the fifth chooses between two tables.
inline void unpack_five_bits(const uint8_t* tile, const Scales& scales, uint16_t* out) {
  const __m512 lower_steps = _mm512_sub_ps(steps(), _mm512_set1_ps(16.0f));
#pragma GCC unroll 8
  for (int n = 0; n < 16; ++n) {
    const __m512 d = _mm512_set1_ps(scales.d[n]);
    const __m512i lower = as_table(_mm512_mul_ps(lower_steps, d)), upper = as_table(_mm512_mul_ps(steps(), d));
    uint32_t high;
    __builtin_memcpy(&high, tile + 32 + 4 * n, 4);
    const __m512i indices = table_indices(tile + 96 + 16 * n);
    const __m512i row = _mm512_permutexvar_epi16(indices, lower);
    store_row(out + 32 * n, _mm512_mask_permutexvar_epi16(row, high, indices, upper));
  }
}

inline void unpack_six_bits(const uint8_t* tile, const Scales& scales, uint16_t* out) {
  for (int n = 0; n < 16; ++n) {
    const V low = codes_u6(tile + 160 + 16 * n, tile + 32 + 8 * n, 0);
    const V high = codes_u6(tile + 160 + 16 * n, tile + 32 + 8 * n, 1);
    store_row(out + 32 * n, round_pair(_mm512_mul_ps(low.v, _mm512_set1_ps(scales.d[n])),
                                       _mm512_mul_ps(high.v, _mm512_set1_ps(scales.m[n]))));
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

inline void unpack_plain(Format format, const uint8_t* tile, uint16_t* out) {
  for (int n = 0; n < 16; ++n) {
    const uint8_t* row = tile + n * (format == Format::kF32 ? 128 : 64);
    if (format == Format::kBF16) {
      store_row(out + 32 * n, _mm512_loadu_si512(row));
    } else if (format == Format::kF16) {
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
  const uint8_t* tile = find_tile<F>(panel, t).tile;
  for (int i = 0; i < kFormats[static_cast<int>(F)].tile_bytes; i += 64)
    _mm_prefetch(reinterpret_cast<const char*>(tile) + kPrefetchBytes + i, _MM_HINT_T0);
  if constexpr (F <= Format::kBF16)
    unpack_plain(F, tile, out);
  else if constexpr (F == Format::kQ8_0)
    unpack_bytes(tile, scales, out);
  else if constexpr (F == Format::kQ6_K)
    unpack_six_bits(tile, scales, out);
  else if constexpr (F == Format::kQ5_0)
    unpack_five_bits(tile, scales, out);
  else
    unpack_nibbles<F>(tile + (F == Format::kQ4_1 ? 64 : 32), scales, out);
}
