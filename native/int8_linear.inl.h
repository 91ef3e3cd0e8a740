// Linears of channel formats: activations of eight bits with one scale a row; included by f32_kernels.inl.h.
//
// A row of activations is normalized, rotated (rotation.h) and rounded to codes of eight bits. Codes of weights, as
// unsigned bytes, times codes of activations are summed exactly in 32 bits over all inputs, so that neither the
// instruction set nor the order matters; what an unsigned reading adds, 128 times the sum of the row's codes, is
// subtracted. An infinite or NaN activation makes all outputs of its row NaN.

#include "channel_operands.inl.h"

// --- activations -----------------------------------------------------------------------------------------------------

static int64_t quantized_bytes(int64_t num_rows, int64_t width) {
  const QuantizedRows rows{nullptr, num_rows, padded_width(width) / kTileInputs};
  return num_rows * rows.row_bytes();
}

// Every lane minus or plus its partner at distance `step`, lower partner first.
template <int step>
static inline V butterfly(V a) {
  alignas(64) static constexpr auto signs = [] {
    struct Signs {
      float lane[16];
    } s{};
    for (int i = 0; i < 16; ++i) s.lane[i] = i & step ? -1.0f : 1.0f;
    return s;
  }();
  return V::fma(a, V::load(signs.lane), V::template exchange<step>(a));
}

static inline V rotate_lanes(V v, int64_t block) {
  if (block > 1) v = butterfly<1>(v);
  if (block > 2) v = butterfly<2>(v);
  if (block > 4) v = butterfly<4>(v);
  return block > 8 ? butterfly<8>(v) : v;
}

// Sixteen channels of every block, the same ones, across the blocks.
template <int count>
static inline void mix_blocks(float* x, int64_t block, const float* matrix) {
  V in[count];
  for (int j = 0; j < count; ++j) in[j] = V::load(x + j * block);
  for (int i = 0; i < count; ++i) {
    V sum = V::mul(in[0], V::set1(matrix[i * count]));
    for (int j = 1; j < count; ++j) sum = V::fma(in[j], V::set1(matrix[i * count + j]), sum);
    V::store(x + i * block, sum);
  }
}

template <int count>
static void mix_all_blocks(float* x, int64_t block) {
  const float* matrix = hartley_matrix(count);
  for (int64_t k = 0; k < block; k += 16) mix_blocks<count>(x + k, block, matrix);
}

static void mix(float* x, const Rotation& rotation) {
  switch (rotation.num_mixed) {  // odd, since blocks are the largest power of two
    case 3:
      return mix_all_blocks<3>(x, rotation.block);
    case 5:
      return mix_all_blocks<5>(x, rotation.block);
    case 7:
      return mix_all_blocks<7>(x, rotation.block);
    case 9:
      return mix_all_blocks<9>(x, rotation.block);
    case 11:
      return mix_all_blocks<11>(x, rotation.block);
    default:
      return;
  }
}

static void rotate(float* x, int64_t width) {
  const Rotation rotation(width);
  const int64_t block = rotation.block;
  for (int64_t k = 0; k < width; k += 16)
    store_lanes(x + k, rotate_lanes(load_lanes(x + k, width - k), block), width - k);
  for (int64_t step = 16; step < block; step *= 2)
    for (int64_t begin = 0; begin < width; begin += 2 * step)
      for (int64_t k = begin; k < begin + step; k += 16) {
        const V a = V::load(x + k), b = V::load(x + k + step);
        V::store(x + k, V::add(a, b));
        V::store(x + k + step, V::sub(a, b));
      }
  mix(x, rotation);
}

// Codes of a rotated row, whose padding is zero. A row that is not finite gets codes 0 and the scale NaN.
static inline void quantize_row(const float* x, const QuantizedRows& rows, int64_t row) {
  int8_t* codes = const_cast<int8_t*>(rows.codes(row));
  int32_t* tile_sums = const_cast<int32_t*>(rows.tile_sums(row));
  V largest = V::set1(0.0f), poison = V::set1(0.0f);
  for (int64_t k = 0; k < rows.num_tiles * kTileInputs; k += 16) {
    const V v = V::load(x + k);
    largest = V::max(largest, magnitude(v));
    poison = V::fma(v, V::set1(0.0f), poison);
  }
  const float maximum = V::largest(largest), poisoned = V::sum(poison);
  const bool is_usable = maximum > kSmallestScaled && poisoned == 0.0f;
  const V inverse = V::set1(is_usable ? 127.0f / maximum : 0.0f);
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
  head.scale = (is_usable ? maximum * (1.0f / 127.0f) : 0.0f) + poisoned;
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

// The same of an INT4 panel: products of bare codes are multiplied by the group's multiplier once.
static void dot_nibble_row(const uint8_t* panel, int64_t num_tiles, const int8_t* codes, const int32_t* tile_sums,
                           int32_t* sums) {
  const ChannelPanel layout{Format::kINT4, num_tiles};
  const I low_bits = I::set1(0x0f0f0f0f);
  const uint8_t* tile = panel + layout.codes_at();
  const uint8_t* multipliers = panel + layout.multipliers_at();
  I acc = I::zero();
  for (int64_t t = 0; t < num_tiles; ++t, tile += layout.tile_bytes(), codes += kTileInputs) {
    I low = I::set1(-8 * tile_sums[t]), high = I::zero();
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const I both = I::load(tile + 64 * v);
      prefetch_far(tile + 64 * v);
      low = dot_nibbles_add(low, I::both(both, low_bits), broadcast_codes(codes + 4 * v));
      high = dot_nibbles_add(high, I::both(I::template shift<4>(both), low_bits), broadcast_codes(codes + 16 + 4 * v));
    }
    const I m = load_multipliers(multipliers + t * ChannelPanel::kTileMultiplierBytes);
    acc = I::add(acc, I::multiply(I::add(low, high), m));
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
      if (unit.weights[place]->format == Format::kINT4) {
        dot_nibble_row(panel, rows.num_tiles, rows.codes(0), rows.tile_sums(0), sum);
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
