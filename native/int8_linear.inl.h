// Linears of channel formats: activations of eight bits with one scale a row; included by f32_kernels.inl.h.
//
// A row of activations is normalized, rotated and rounded to codes of eight bits (byte_codes.inl.h). Codes of weights,
// as unsigned bytes, times codes of activations are summed exactly in 32 bits over all inputs, so that neither the
// instruction set nor the order matters; what an unsigned reading adds, 128 times the sum of the row's codes, is
// subtracted. An infinite or NaN activation makes all outputs of its row NaN.

#include "channel_operands.inl.h"

// --- activations -----------------------------------------------------------------------------------------------------

static int64_t quantized_bytes(int64_t num_rows, int64_t width) {
  const QuantizedRows rows{nullptr, num_rows, padded_width(width) / kTileInputs};
  return num_rows * rows.row_bytes();
}

// Codes of a rotated row, whose padding is zero. A row that is not finite gets codes 0 and the scale NaN.
static inline void quantize_row(const float* x, const QuantizedRows& rows, int64_t row) {
  int8_t* codes = const_cast<int8_t*>(rows.codes(row));
  int32_t* tile_sums = const_cast<int32_t*>(rows.tile_sums(row));
  const ByteScale scale = byte_scale(x, rows.num_tiles * kTileInputs);
  const bool is_usable = scale.inverse != 0.0f;
  const V inverse = V::set1(scale.inverse);
  float sum = 0.0f;
  for (int64_t t = 0; t < rows.num_tiles; ++t) {
    const float* tile = x + t * kTileInputs;
    V low = V::set1(0.0f), high = V::set1(0.0f);
    if (is_usable) {
      low = V::round(V::mul(V::load(tile), inverse));
      high = V::round(V::mul(V::load(tile + 16), inverse));
    }
    store_bytes(codes + t * kTileInputs, low);
    store_bytes(codes + t * kTileInputs + 16, high);
    const float tile_sum = V::sum(V::add(low, high));  // exact: integers below 2^24, as is the sum of the row
    tile_sums[t] = static_cast<int32_t>(tile_sum);
    sum += tile_sum;
  }
  __builtin_memset(codes + rows.num_tiles * kTileInputs, 0,
                   static_cast<size_t>(rows.codes_bytes() - rows.num_tiles * kTileInputs));
  RowHead& head = const_cast<RowHead&>(rows.head(row));
  head.scale = scale.factor;
  head.sum = static_cast<int32_t>(sum);
}

// Normalize (optional), rotate and quantize row groups [begin, end); `scratch` holds one row of floats.
static void quantize_rows(const PackArgs& args, int64_t begin, int64_t end, uint8_t* scratch) {
  const int64_t padded = padded_width(args.width);
  const QuantizedRows rows{args.packed, args.num_rows, padded / kTileInputs};
  const int64_t last = end * kGroupRows < args.num_rows ? end * kGroupRows : args.num_rows;
  float* values = reinterpret_cast<float*>(scratch);
  for (int64_t row = begin * kGroupRows; row < last; ++row) {
    const float* x = args.input.row(row);
    const V factor = V::set1(args.norm_weight ? norm_factor(x, args.width, args.norm_eps) : 1.0f);
    for (int64_t k = 0; k < padded; k += 16) {
      const int64_t left = args.width - k;
      V v = left > 0 ? load_lanes(x + k, left) : V::set1(0.0f);
      if (args.norm_weight && left > 0) v = V::mul(V::mul(v, factor), load_lanes(args.norm_weight + k, left));
      V::store(values + k, v);
    }
    rotate(values, args.width);
    quantize_row(values, rows, row);
  }
}

// --- products -------------------------------------------------------------------------------------------------------

static inline I broadcast_codes(const int8_t* codes) {
  int32_t four;
  __builtin_memcpy(&four, codes, 4);
  return I::set1(four);
}

// sums[r][p] = codes of row r . unsigned codes of plane p, [R][P][16] of int32.
template <int R, int P>
static void dot_bytes(const uint8_t* const* planes, int64_t num_tiles, const int8_t* const* rows, int32_t* sums) {
  I acc[R][P];
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) acc[r][p] = I::zero();
  for (int64_t t = 0; t < num_tiles; ++t) {
    const int64_t at = t * ChannelPanel::kTileBytes;
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) {
      I weights[P];
      for (int p = 0; p < P; ++p) weights[p] = I::load(planes[p] + at + 64 * v);
      for (int r = 0; r < R; ++r) {
        const I codes = I::in_order(broadcast_codes(rows[r] + t * kTileInputs + 4 * v));
        for (int p = 0; p < P; ++p) acc[r][p] = dot_bytes_add(acc[r][p], weights[p], codes);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) I::store(sums + (r * P + p) * 16, acc[r][p]);
}

// sums[16] = codes of one row . unsigned codes of one plane, which may come from memory.
static void dot_byte_row(const uint8_t* plane, int64_t num_tiles, const int8_t* codes, int32_t* sums) {
  I acc[4] = {I::zero(), I::zero(), I::zero(), I::zero()};
  for (int64_t t = 0; t < num_tiles; ++t, plane += ChannelPanel::kTileBytes, codes += kTileInputs)
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) {
      prefetch_far(plane + 64 * v);
      acc[v % 4] = dot_bytes_add(acc[v % 4], I::load(plane + 64 * v), broadcast_codes(codes + 4 * v));
    }
  I::store(sums, I::add(I::add(acc[0], acc[1]), I::add(acc[2], acc[3])));
}

// codes of a row . bare nibbles of a tile, plus `start`.
[[gnu::always_inline]] static inline I dot_nibble_tile(const uint8_t* nibbles, const int8_t* codes, I start) {
  const I low_bits = I::set1(0x0f0f0f0f);
  I low = start, high = I::zero();
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const I both = I::load(nibbles + 64 * v);
    prefetch_far(nibbles + 64 * v);
    low = dot_nibbles_add(low, I::both(both, low_bits), broadcast_codes(codes + 4 * v));
    high = dot_nibbles_add(high, I::both(I::template shift<4>(both), low_bits), broadcast_codes(codes + 16 + 4 * v));
  }
  return I::add(low, high);
}

// The same as dot_byte_row of a panel of multipliers and nibbles, whose products are multiplied by the group's
// multiplier once, and of its residual where the reading has one.
template <bool has_residual>
static void dot_nibble_row(const uint8_t* panel, const uint8_t* residual, int64_t num_tiles, const int8_t* codes,
                           const int32_t* tile_sums, int32_t* sums) {
  const ChannelPanel layout{Format::kINT4, num_tiles};
  const uint8_t* tile = panel + layout.codes_at();
  const uint8_t* multipliers = panel + layout.multipliers_at();
  I acc = I::zero();
  for (int64_t t = 0; t < num_tiles; ++t, tile += layout.tile_bytes(), codes += kTileInputs) {
    const I products = dot_nibble_tile(tile, codes, I::set1(-8 * tile_sums[t]));
    const I m = load_multipliers(multipliers + t * ChannelPanel::kTileMultiplierBytes);
    acc = I::add(acc, I::multiply(products, m));
    if constexpr (has_residual)
      acc = I::add(acc, dot_nibble_tile(residual + t * layout.tile_bytes(), codes, I::set1(-7 * tile_sums[t])));
  }
  I::store(sums, acc);
}

// --- linear ----------------------------------------------------------------------------------------------------------

// R rows of a block by four planes; fewer rows than R take a smaller block.
template <int R>
static void dot_row_block(const uint8_t* const* planes, const QuantizedRows& rows, int64_t row, int64_t count,
                          int32_t* sums) {
  if (count < R) {
    if constexpr (R > 1) dot_row_block<R - 1>(planes, rows, row, count, sums);
    return;
  }
  const int8_t* codes[R];
  for (int r = 0; r < R; ++r) codes[r] = rows.codes(row + r);
  if constexpr (kBytePanels == 4) {
    dot_bytes<R, 4>(planes, rows.num_tiles, codes, sums);
  } else {
    int32_t part[R * kBytePanels * 16];
    for (int p = 0; p < 4; p += kBytePanels) {
      dot_bytes<R, kBytePanels>(planes + p, rows.num_tiles, codes, part);
      for (int r = 0; r < R; ++r)
        __builtin_memcpy(sums + (r * 4 + p) * 16, part + r * kBytePanels * 16, kBytePanels * 64);
    }
  }
}

static void channel_unit(const LinearArgs& args, const ChannelUnit& unit, const QuantizedRows& rows, uint8_t* scratch) {
  int32_t sums[kByteRows * 64];
  if (args.num_rows == 1) {
    // a bare nibble has no offset; what is added to the sums of bytes is taken off here
    for (int place = 0; place < unit.num_places; ++place) {
      const uint8_t* panel = unit.panels[place];
      int32_t* sum = sums + 16 * place;
      const uint8_t* residual = unit.residuals[place];
      if (unit.weights[place]->format != Format::kINT8) {
        (residual ? dot_nibble_row<true> : dot_nibble_row<false>)(panel, residual, rows.num_tiles, rows.codes(0),
                                                                  rows.tile_sums(0), sum);
      } else {
        dot_byte_row(panel + ChannelPanel::kScaleBytes, rows.num_tiles, rows.codes(0), sum);
        I::store(sum, I::add(I::load(sum), I::set1(-kByteOffset * rows.head(0).sum)));
      }
    }
    return write_channels(args, unit, rows, 0, 1, sums, 0);
  }
  const uint8_t* planes[4];
  unit.find_planes(scratch, planes);
  for (int64_t row = 0; row < args.num_rows; row += kByteRows) {
    const int64_t count = args.num_rows - row < kByteRows ? args.num_rows - row : kByteRows;
    dot_row_block<kByteRows>(planes, rows, row, count, sums);
    write_channels(args, unit, rows, row, count, sums, kByteOffset);
  }
}

static void channel_linear(const LinearArgs& args, int64_t begin, int64_t end, uint8_t* scratch) {
  const QuantizedRows rows{args.packed, args.num_rows, args.weights[0].num_tiles()};
  for (int64_t unit = begin; unit < end; ++unit) channel_unit(args, ChannelUnit(args, unit), rows, scratch);
}
