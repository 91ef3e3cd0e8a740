// Linears of channel formats: activations of eight bits with one scale a row; included by f32_kernels.inl.h.
//
// A row of activations is normalized, rotated (rotation.h) and rounded to codes of eight bits. Codes of weights, as
// unsigned bytes, times codes of activations are summed exactly in 32 bits over all inputs, so that neither the
// instruction set nor the order matters; what an unsigned reading adds, 128 times the sum of the row's codes, is
// subtracted. An infinite or NaN activation makes all outputs of its row NaN.

// --- activations ----------------------------------------------------------------------------------------------------

struct RowHead {
  float scale;
  int32_t sum;  // of the row's codes
};

// Rows as quantize_rows leaves them: a RowHead, codes int8[num_tiles * 32], sums of the codes of each tile
// int32[num_tiles]; each part begins at a multiple of 64 bytes.
struct QuantizedRows {
  const uint8_t* packed;
  int64_t num_rows;
  int64_t num_tiles;

  int64_t codes_bytes() const { return (num_tiles * kTileInputs + 63) / 64 * 64; }
  int64_t row_bytes() const { return 64 + codes_bytes() + (num_tiles * 4 + 63) / 64 * 64; }
  const uint8_t* row(int64_t r) const { return packed + r * row_bytes(); }
  const RowHead& head(int64_t r) const { return *reinterpret_cast<const RowHead*>(row(r)); }
  const int8_t* codes(int64_t r) const { return reinterpret_cast<const int8_t*>(row(r) + 64); }
  const int32_t* tile_sums(int64_t r) const { return reinterpret_cast<const int32_t*>(row(r) + 64 + codes_bytes()); }
};

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
      for (int p = 0; p < P; ++p) {
        weights[p] = I::load(planes[p] + at + 64 * v);
        if constexpr (R == 1) __builtin_prefetch(planes[p] + at + 64 * v + kPrefetchBytes);
      }
      for (int r = 0; r < R; ++r) {
        const I codes = broadcast_codes(rows[r] + t * kTileInputs + 4 * v);
        for (int p = 0; p < P; ++p) acc[r][p] = dot_bytes_add(acc[r][p], weights[p], codes);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) I::store(sums + (r * P + p) * 16, acc[r][p]);
}

// Multipliers of sixteen outputs, 1 to 16.
static inline I load_multipliers(const uint8_t* p) { return I::add(I::nibble_lanes(p), I::set1(1)); }

// sums[p] = codes of one row . codes of INT4 panel p, [P][16] of int32: products of bare codes are multiplied by the
// group's multiplier once.
template <int P>
static void dot_nibbles(const uint8_t* const* panels, int64_t num_tiles, const int8_t* codes, const int32_t* tile_sums,
                        int32_t* sums) {
  const ChannelPanel layout{Format::kINT4, num_tiles};
  const I low_bits = I::set1(0x0f0f0f0f);
  I acc[P];
  for (int p = 0; p < P; ++p) acc[p] = I::zero();
  for (int64_t t = 0; t < num_tiles; ++t) {
    const I offset = I::set1(-8 * tile_sums[t]);
    const int8_t* x = codes + t * kTileInputs;
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const uint8_t* tile = panels[p] + layout.codes_at() + t * layout.tile_bytes();
      I low = offset, high = I::zero();
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const I both = I::load(tile + 64 * v);
        __builtin_prefetch(tile + 64 * v + kPrefetchBytes);
        low = dot_nibbles_add(low, I::both(both, low_bits), broadcast_codes(x + 4 * v));
        high = dot_nibbles_add(high, I::both(I::template shift<4>(both), low_bits), broadcast_codes(x + 16 + 4 * v));
      }
      const I multipliers = load_multipliers(panels[p] + layout.multipliers_at() + t * layout.kTileMultiplierBytes);
      acc[p] = I::add(acc[p], I::multiply(I::add(low, high), multipliers));
    }
  }
  for (int p = 0; p < P; ++p) I::store(sums + 16 * p, acc[p]);
}

// An INT4 panel as unsigned bytes m (q - 8) + 128.
static void unpack_nibbles(const uint8_t* panel, int64_t num_tiles, uint8_t* plane) {
  const ChannelPanel layout{Format::kINT4, num_tiles};
  const I low_bits = I::set1(0x0f0f0f0f);
  for (int64_t t = 0; t < num_tiles; ++t, plane += ChannelPanel::kTileBytes) {
    const uint8_t* tile = panel + layout.codes_at() + t * layout.tile_bytes();
    const I m = load_multipliers(panel + layout.multipliers_at() + t * layout.kTileMultiplierBytes);
    const I words = I::multiply(m, I::set1(0x00010001));
    const I offset = I::multiply(I::add(I::set1(128), I::multiply(m, I::set1(-8))), I::set1(0x01010101));
    for (int v = 0; v < 4; ++v) {
      // Products of bytes stay below 256, so a word holds two of them.
      const I both = I::load(tile + 64 * v);
      const I low = I::multiply_words(I::both(both, low_bits), words);
      const I high = I::multiply_words(I::both(I::template shift<4>(both), low_bits), words);
      I::store(plane + 64 * v, I::add_bytes(low, offset));
      I::store(plane + 256 + 64 * v, I::add_bytes(high, offset));
    }
  }
}

// --- linear ---------------------------------------------------------------------------------------------------------

// The panels of a unit at four places; a missing one repeats the last, and its sums are dropped.
struct ChannelUnit {
  const uint8_t* panels[4];
  Format formats[4];
  bool is_uniform;

  ChannelUnit(const LinearArgs& args, const Unit& unit) : is_uniform(true) {
    for (int place = 0; place < 4; ++place) {
      const int source = place < unit.num_places() ? place : unit.num_places() - 1;
      const PackedWeight& weight = args.weights[unit.weight(source)];
      formats[place] = weight.format;
      panels[place] = weight.data + unit.panel(source) * ChannelPanel{weight.format, weight.num_tiles()}.num_bytes();
      is_uniform = is_uniform && formats[place] == formats[0];
    }
  }
};

// Finish `count` rows from `row` on: sums [count][4][16].
static void write_channels(const LinearArgs& args, const Unit& unit, const ChannelUnit& panels,
                           const QuantizedRows& rows, int64_t row, int64_t count, const int32_t* sums,
                           bool is_unsigned) {
  const int num_panels = unit.work.num_panels;
  for (int64_t r = 0; r < count; ++r) {
    const RowHead& head = rows.head(row + r);
    const I offset = I::set1(is_unsigned ? -kByteOffset * head.sum : 0);
    float values[4][16];
    for (int place = 0; place < unit.num_places(); ++place) {
      const V scales = V::mul(V::load(reinterpret_cast<const float*>(panels.panels[place])), V::set1(head.scale));
      V::store(values[place], V::mul(I::to_float(I::add(I::load(sums + (r * 4 + place) * 16), offset)), scales));
    }
    for (int i = 0; i < num_panels; ++i) {
      const int64_t column = unit.work.panels[i] * kPanelOutputs;
      write_outputs(args, unit.work.weight, row + r, column, unit.work.column_offset + column, values[i],
                    unit.is_gated ? values[num_panels + i] : nullptr);
    }
  }
}

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
  if constexpr (R == 1 || kBytePanels == 4) {
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

static void channel_unit(const LinearArgs& args, const Unit& unit, const QuantizedRows& rows, uint8_t* scratch) {
  const ChannelUnit panels(args, unit);
  int32_t sums[kByteRows * 64];
  if (args.num_rows == 1 && panels.is_uniform && panels.formats[0] == Format::kINT4) {
    dot_nibbles<4>(panels.panels, rows.num_tiles, rows.codes(0), rows.tile_sums(0), sums);
    return write_channels(args, unit, panels, rows, 0, 1, sums, false);
  }
  const uint8_t* planes[4];
  for (int place = 0; place < 4; ++place) {
    planes[place] = panels.panels[place] + ChannelPanel::kScaleBytes;
    if (panels.formats[place] == Format::kINT8) continue;
    uint8_t* plane = scratch + place * rows.num_tiles * ChannelPanel::kTileBytes;
    unpack_nibbles(panels.panels[place], rows.num_tiles, plane);
    planes[place] = plane;
  }
  for (int64_t row = 0; row < args.num_rows; row += kByteRows) {
    const int64_t count = args.num_rows - row < kByteRows ? args.num_rows - row : kByteRows;
    dot_row_block<kByteRows>(planes, rows, row, count, sums);
    write_channels(args, unit, panels, rows, row, count, sums, true);
  }
}

static void channel_linear(const LinearArgs& args, int64_t begin, int64_t end, uint8_t* scratch) {
  const QuantizedRows rows{args.packed, args.num_rows, args.weights[0].num_tiles()};
  for (int64_t i = begin; i < end; ++i) channel_unit(args, {unit_panels(args, i), args.is_gated}, rows, scratch);
}
