// Linear layers in i16 arithmetic; included by f32_kernels.inl.h.
//
// A row of activations is quantized in blocks of 32: codes of 16 bits with one float32 scale, the largest magnitude
// over 32767. Codes of weights times codes of activations are summed exactly in 32 bits over a block, or over half of
// it where a format has two scales a row; the sums become float32 and are scaled by the weight's d and the block's
// scale. The minimum m of a format is multiplied by the sum of the block's activations. The order of these float32
// operations is one for all instruction sets and any number of rows, hence so are the bits. Weights that are stored
// unquantized are multiplied as float32. An infinite or NaN activation, or a block whose sum overflows float32, makes
// all outputs of its row NaN.
//
// Lanes are outputs: one lane of 32 bits holds the codes of a pair of inputs of one output, and the activations' pair
// is broadcast. The stored rows of a tile are transposed in registers to get there.

// --- activations ----------------------------------------------------------------------------------------------------

struct BlockCodes {
  float scale;
  float sums[3];  // of the dequantized activations: all 32, the first and the last 16
  int16_t codes[32];
};

constexpr float kLargestCode = 32767.0f;
constexpr float kSmallestScaled = 1e-30f;  // a block of smaller magnitudes counts as zeros: the inverse would overflow

// Activations as pack_rows leaves them: [group of kGroupRows rows][tile][row] of BlockCodes, then [row][inputs] of
// float32.
struct Activations {
  const uint8_t* packed;
  int64_t num_rows;
  int64_t num_tiles;

  int64_t group_rows() const { return num_rows < kGroupRows ? num_rows : kGroupRows; }
  int64_t group_bytes() const { return num_tiles * group_rows() * static_cast<int64_t>(sizeof(BlockCodes)); }
  int64_t codes_bytes() const { return (num_rows + kGroupRows - 1) / kGroupRows * group_bytes(); }
  int64_t num_bytes() const {
    return codes_bytes() + num_rows * num_tiles * kTileInputs * static_cast<int64_t>(sizeof(float));
  }
  // Tile 0 of a row; tile t is t * group_rows further.
  const BlockCodes* codes(int64_t row) const {
    return reinterpret_cast<const BlockCodes*>(packed + row / kGroupRows * group_bytes()) + row % kGroupRows;
  }
  const float* floats(int64_t row) const {
    return reinterpret_cast<const float*>(packed + codes_bytes()) + row * num_tiles * kTileInputs;
  }
};

static int64_t activation_bytes(int64_t num_rows, int64_t width) {
  return Activations{nullptr, num_rows, padded_width(width) / kTileInputs}.num_bytes();
}

static inline V magnitude(V v) { return V::max(v, V::sub(V::set1(0.0f), v)); }

// Infinities and NaN make the scale NaN, and so the result.
static inline void quantize(const float* x, BlockCodes& block) {
  const V low = V::load(x), high = V::load(x + 16);
  const float largest = V::largest(V::max(magnitude(low), magnitude(high)));
  const V inverse = V::set1(largest > kSmallestScaled ? kLargestCode / largest : 0.0f);
  const V low_codes = V::round(V::mul(low, inverse)), high_codes = V::round(V::mul(high, inverse));
  const float low_sum = V::sum(low_codes), high_sum = V::sum(high_codes);  // exact: integers below 2^20
  const float poison = 0.0f * (low_sum + high_sum);
  block.scale = (largest > kSmallestScaled ? largest * (1.0f / kLargestCode) : 0.0f) + poison;
  block.sums[0] = block.scale * (low_sum + high_sum);
  block.sums[1] = block.scale * low_sum;
  block.sums[2] = block.scale * high_sum;
  store_words(block.codes, low_codes);
  store_words(block.codes + 16, high_codes);
}

static void pack_rows(const PackArgs& args, int64_t begin, int64_t end, uint8_t*) {
  const int64_t padded = padded_width(args.width);
  const Activations packed{args.packed, args.num_rows, padded / kTileInputs};
  const int64_t last = end * kGroupRows < args.num_rows ? end * kGroupRows : args.num_rows;
  for (int64_t row = begin * kGroupRows; row < last; ++row) {
    const float* x = args.input.row(row);
    float* out = const_cast<float*>(packed.floats(row));
    BlockCodes* blocks = const_cast<BlockCodes*>(packed.codes(row));
    const V factor = V::set1(args.norm_weight ? norm_factor(x, args.width, args.norm_eps) : 1.0f);
    for (int64_t k = 0; k < padded; k += 16) {
      const int64_t left = args.width - k;
      V v = left > 0 ? load_lanes(x + k, left) : V::set1(0.0f);
      if (args.norm_weight && left > 0) v = V::mul(V::mul(v, factor), load_lanes(args.norm_weight + k, left));
      V::store(out + k, v);
    }
    for (int64_t t = 0; t < packed.num_tiles; ++t) quantize(out + t * kTileInputs, blocks[t * packed.group_rows()]);
  }
}

static inline I broadcast_pair(const BlockCodes& block, int pair) {
  int32_t codes;
  __builtin_memcpy(&codes, block.codes + 2 * pair, 4);
  return I::set1(codes);
}

#include "tile_codes.inl.h"

// Whether w = d * code + m with an m that is not zero.
template <Format F>
static constexpr bool has_offset() {
  return format_info(F).has_minimum() || format_info(F).bias != 0;
}

// sums += products of one block, or of half of it.
template <bool is_offset>
static inline V add_block(V sums, I products, V d, V m, const BlockCodes& block, int part) {
  sums = V::fma(I::to_float(products), V::mul(d, V::set1(block.scale)), sums);
  return is_offset ? V::fma(m, V::set1(block.sums[part]), sums) : sums;
}

// --- one row --------------------------------------------------------------------------------------------------------

template <Format F>
[[gnu::always_inline]] static inline V add_tile(V sums, const uint8_t* header, const uint8_t* tile,
                                                const BlockCodes& block) {
  I products[2] = {I::zero(), I::zero()};
  each_pair<F>(tile, [&]<int pair>(I words) __attribute__((always_inline)) {
    products[pair / 8] = dot_add(products[pair / 8], words, broadcast_pair(block, pair));
  });
  if constexpr (format_info(F).num_scales() == 1) {
    const RowScales scales = tile_scales<F>(header, tile, 0);
    return add_block<has_offset<F>()>(sums, I::add(products[0], products[1]), scales.d, scales.m, block, 0);
  }
  for (int half = 0; half < 2; ++half) {
    const RowScales scales = tile_scales<F>(header, tile, half);
    sums = add_block<has_offset<F>()>(sums, products[half], scales.d, scales.m, block, 1 + half);
  }
  return sums;
}

// Far enough ahead for one stream to use all of the memory's bandwidth; into the second-level cache, since the first
// would have lost it by then.
constexpr int64_t kPrefetchBytes = 16384;

static inline void prefetch_far(const uint8_t* p) { __builtin_prefetch(p + kPrefetchBytes, 0, 2); }

// sums = activations . one panel, for one row.
template <Format F>
static void dot_single(const uint8_t* panel, const Activations& x, float* sums) {
  constexpr FormatInfo info = format_info(F);
  V acc = V::set1(0.0f);
  const BlockCodes* block = x.codes(0);
  for (const BlockCodes* end = block + x.num_tiles; block < end; panel += info.super_bytes())
    for (int64_t i = 0; i < info.tiles_per_super; ++i, ++block) {
      const uint8_t* tile = panel + info.header_bytes + i * info.tile_bytes;
      for (int64_t at = 0; at < info.tile_bytes; at += 64) prefetch_far(tile + at);
      acc = add_tile<F>(acc, panel, tile, *block);
    }
  V::store(sums, acc);
}

// --- many rows ------------------------------------------------------------------------------------------------------

// Tiles that are unpacked at once: four panels of them and some rows stay in the first-level cache. Formats with
// super-blocks have as many in one.
constexpr int64_t kUnpackedTiles = 8;

// Some tiles of a panel unpacked for many rows: [tile][pair] of I, then [tile][half][d, m] of V.
struct UnpackedTiles {
  static constexpr int64_t kWordsBytes = 1024;
  static constexpr int64_t kScalesBytes = 256;
  static constexpr int64_t kNumBytes = kUnpackedTiles * (kWordsBytes + kScalesBytes);

  uint8_t* memory;

  uint8_t* words(int64_t t) const { return memory + t * kWordsBytes; }
  float* scales(int64_t t) const {
    return reinterpret_cast<float*>(memory + kUnpackedTiles * kWordsBytes + t * kScalesBytes);
  }
};

// Tiles [begin, begin + count) of a panel; `begin` is a multiple of kUnpackedTiles.
template <Format F>
static void unpack_tiles(const uint8_t* panel, int64_t begin, int64_t count, UnpackedTiles out) {
  constexpr FormatInfo info = format_info(F);
  static_assert(kUnpackedTiles % info.tiles_per_super == 0);
  const uint8_t* super = panel + begin / info.tiles_per_super * info.super_bytes();
  for (int64_t t = 0; t < count; super += info.super_bytes())
    for (int64_t i = 0; i < info.tiles_per_super; ++i, ++t) {
      const uint8_t* tile = super + info.header_bytes + i * info.tile_bytes;
      uint8_t* words = out.words(t);
      each_pair<F>(tile, [&]<int pair>(I codes) __attribute__((always_inline)) { I::store(words + 64 * pair, codes); });
      for (int half = 0; half < info.num_scales(); ++half) {
        const RowScales scales = tile_scales<F>(super, tile, half);
        V::store(out.scales(t) + 32 * half, scales.d);
        V::store(out.scales(t) + 32 * half + 16, scales.m);
      }
    }
}

// R rows by P panels, added to sums [R][4][16]; the order of additions is that of dot_single.
template <int R, int P, int num_scales, bool is_offset>
static void dot_block(const UnpackedTiles* panels, const BlockCodes* x, int64_t tile_stride, int64_t num_tiles,
                      float* sums) {
  constexpr int num_pairs = 16 / num_scales;
  for (int64_t t = 0; t < num_tiles; ++t, x += tile_stride)
    repeat<num_scales>([&]<int half>() __attribute__((always_inline)) {
      I products[R][P];
      for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) products[r][p] = I::zero();
#pragma GCC unroll 4
      for (int i = 0; i < num_pairs; ++i) {
        const int pair = half * num_pairs + i;
        I words[P];
        for (int p = 0; p < P; ++p) words[p] = I::load(panels[p].words(t) + 64 * pair);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const I codes = I::in_order(broadcast_pair(x[r], pair));
          for (int p = 0; p < P; ++p) products[r][p] = dot_add(products[r][p], words[p], codes);
        }
      }
      V d[P], m[P];
      for (int p = 0; p < P; ++p) {
        d[p] = V::load(panels[p].scales(t) + 32 * half);
        m[p] = V::load(panels[p].scales(t) + 32 * half + 16);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) {
          float* sum = sums + (r * 4 + p) * 16;
          const V before = V::load(sum);
          V::store(sum, add_block<is_offset>(before, products[r][p], d[p], m[p], x[r], num_scales == 1 ? 0 : 1 + half));
        }
    });
}

// Rows [row, row + count) of one group, count <= R.
template <int R, int P, int num_scales, bool is_offset>
static void dot_rows(const UnpackedTiles* panels, const Activations& x, int64_t row, int64_t count, int64_t tile,
                     int64_t num_tiles, float* sums) {
  if (count == R) {
    const BlockCodes* codes = x.codes(row) + tile * x.group_rows();
    return dot_block<R, P, num_scales, is_offset>(panels, codes, x.group_rows(), num_tiles, sums);
  }
  if constexpr (R > 1) dot_rows<R - 1, P, num_scales, is_offset>(panels, x, row, count, tile, num_tiles, sums);
}

// The panels of a unit: of a gated linear those of gate, then those of up.
struct Unit {
  UnitPanels work;
  bool is_gated;

  int num_places() const { return is_gated ? 2 * work.num_panels : work.num_panels; }
  int weight(int place) const { return is_gated ? place / work.num_panels : work.weight; }
  int64_t panel(int place) const { return work.panels[is_gated ? place % work.num_panels : place]; }
};

#include "float_linear.inl.h"
#include "list_linear.inl.h"

// --- linear ---------------------------------------------------------------------------------------------------------

using DotRows = void (*)(const UnpackedTiles*, const Activations&, int64_t, int64_t, int64_t, int64_t, float*);

// Unquantized weights have the last two alone, the others all but these.
struct FormatKernels {
  void (*dot_single)(const uint8_t*, const Activations&, float*);
  void (*unpack_tiles)(const uint8_t*, int64_t, int64_t, UnpackedTiles);
  DotRows dot_panels;  // kPanelBlock of them
  DotRows dot_panel;
  void (*dot_float_panel)(const uint8_t*, const Activations&, float*);
  void (*unpack_floats)(const PackedWeight&, int64_t, uint8_t*);
};

template <Format F>
static constexpr FormatKernels format_kernels() {
  constexpr FormatInfo info = format_info(F);
  if constexpr (info.is_plain()) {
    return {nullptr, nullptr, nullptr, nullptr, dot_dense_panel<F>, unpack_floats<F>};
  } else {
    constexpr int num_scales = info.num_scales();
    return {dot_single<F>,
            unpack_tiles<F>,
            dot_rows<kRowBlock, kPanelBlock, num_scales, has_offset<F>()>,
            dot_rows<kRowBlock, 1, num_scales, has_offset<F>()>,
            nullptr,
            nullptr};
  }
}

static constexpr auto kFormatKernels = format_table([]<Format F>() { return format_kernels<F>(); });

static constexpr FormatKernels kSparseKernels = {nullptr, nullptr, nullptr, nullptr, dot_sparse_panel, unpack_sparse};
static constexpr FormatKernels kListKernels = {nullptr, nullptr, nullptr, nullptr, dot_list_panel, nullptr};

static inline const FormatKernels& kernels_of(Format format) {
  if (format == Format::kF16_LIST) return kListKernels;
  return format == Format::kF16_SPARSE ? kSparseKernels : kFormatKernels[format];
}

// One row: sums of every place.
static void dot_places(const LinearArgs& args, const Unit& unit, const Activations& x, float (*sums)[16]) {
  for (int place = 0; place < unit.num_places(); ++place) {
    const PackedWeight& weight = args.weights[unit.weight(place)];
    const FormatKernels& kernels = kernels_of(weight.format);
    const auto dot = kernels.dot_single ? kernels.dot_single : kernels.dot_float_panel;
    dot(weight.panel(unit.panel(place)), x, sums[place]);
  }
}

static void linear_single(const LinearArgs& args, const Unit& unit, const Activations& x) {
  float sums[4][16];
  dot_places(args, unit, x, sums);
  for (int i = 0; i < unit.work.num_panels; ++i) {
    const int64_t column = unit.work.panels[i] * kPanelOutputs;
    write_outputs(args, unit.work.weight, 0, column, unit.work.column_offset + column, sums[i],
                  unit.is_gated ? sums[unit.work.num_panels + i] : nullptr);
  }
}

constexpr int64_t kRowChunk =
    256;  // rows whose sums are kept while the tiles of a unit are unpacked one after the other
constexpr int64_t kSumsBytes = kRowChunk * 4 * 16 * static_cast<int64_t>(sizeof(float));

// Sums [count][4][16] of the rows from `row` on, for a place of unquantized weights.
static void multiply_floats(const LinearArgs& args, const Unit& unit, int place, const Activations& x, int64_t row,
                            int64_t count, float* panel, float* sums) {
  const PackedWeight& weight = args.weights[unit.weight(place)];
  if (row == 0) kernels_of(weight.format).unpack_floats(weight, unit.panel(place), reinterpret_cast<uint8_t*>(panel));
  float part[kRowBlock * 16];
  for (int64_t r = 0; r < count; r += kRowBlock) {
    const int64_t num_rows = count - r < kRowBlock ? count - r : kRowBlock;
    dot_float_rows(panel, x, row + r, num_rows, part);
    for (int64_t i = 0; i < num_rows; ++i) __builtin_memcpy(sums + ((r + i) * 4 + place) * 16, part + 16 * i, 64);
  }
}

// The same for places [place, place + P) of quantized weights, P being 1 or kPanelBlock.
static void multiply_tiles(const LinearArgs& args, const Unit& unit, int place, int num_panels, const Activations& x,
                           int64_t row, int64_t count, uint8_t* scratch, float* sums) {
  const FormatKernels& kernels = kernels_of(args.weights[unit.weight(place)].format);
  const DotRows dot = num_panels == kPanelBlock ? kernels.dot_panels : kernels.dot_panel;
  UnpackedTiles panels[kPanelBlock];
  for (int p = 0; p < num_panels; ++p) panels[p] = {scratch + p * UnpackedTiles::kNumBytes};
  for (int64_t tile = 0; tile < x.num_tiles; tile += kUnpackedTiles) {
    const int64_t num_tiles = x.num_tiles - tile < kUnpackedTiles ? x.num_tiles - tile : kUnpackedTiles;
    for (int p = 0; p < num_panels; ++p) {
      const PackedWeight& weight = args.weights[unit.weight(place + p)];
      kernels.unpack_tiles(weight.data + unit.panel(place + p) * weight.panel_bytes(), tile, num_tiles, panels[p]);
    }
    for (int64_t r = 0; r < count; r += kRowBlock)
      dot(panels, x, row + r, count - r < kRowBlock ? count - r : kRowBlock, tile, num_tiles,
          sums + (r * 4 + place) * 16);
  }
}

// Whether places [place, place + kPanelBlock) exist and have one format.
static bool is_panel_block(const LinearArgs& args, const Unit& unit, int place) {
  if (place + kPanelBlock > unit.num_places()) return false;
  for (int p = 1; p < kPanelBlock; ++p)
    if (args.weights[unit.weight(place + p)].format != args.weights[unit.weight(place)].format) return false;
  return true;
}

// Many rows: some tiles of the panels are unpacked and meet all rows of a chunk while they are in the first-level
// cache.
static void linear_rows(const LinearArgs& args, const Unit& unit, const Activations& x, uint8_t* scratch) {
  float* sums = reinterpret_cast<float*>(scratch);
  uint8_t* unpacked = scratch + kSumsBytes;
  const int64_t width = x.num_tiles * kTileInputs;
  const ListScratch lists{reinterpret_cast<float*>(unpacked + 4 * unpacked_bytes(width)), width};
  for (int64_t row = 0; row < args.num_rows; row += kRowChunk) {
    const int64_t count = args.num_rows - row < kRowChunk ? args.num_rows - row : kRowChunk;
    __builtin_memset(sums, 0, static_cast<size_t>(count * 64) * sizeof(float));
    multiply_lists(args, unit, x, row, count, lists, sums);
    for (int place = 0; place < unit.num_places();) {
      const Format format = args.weights[unit.weight(place)].format;
      const bool is_plain = kernels_of(format).unpack_floats != nullptr, is_list = format == Format::kF16_LIST;
      const int num_panels = !is_plain && !is_list && is_panel_block(args, unit, place) ? kPanelBlock : 1;
      if (is_plain)
        multiply_floats(args, unit, place, x, row, count,
                        reinterpret_cast<float*>(unpacked + place * unpacked_bytes(width)), sums);
      else if (!is_list)
        multiply_tiles(args, unit, place, num_panels, x, row, count, unpacked, sums);
      place += num_panels;
    }
    for (int64_t r = 0; r < count; ++r)
      for (int i = 0; i < unit.work.num_panels; ++i) {
        const int64_t column = unit.work.panels[i] * kPanelOutputs;
        const int up = unit.work.num_panels + i;
        write_outputs(args, unit.work.weight, row + r, column, unit.work.column_offset + column,
                      sums + (r * 4 + i) * 16, unit.is_gated ? sums + (r * 4 + up) * 16 : nullptr);
      }
  }
}

static void linear(const LinearArgs& args, int64_t begin, int64_t end, uint8_t* scratch) {
  const Activations x{args.packed, args.num_rows, args.weights[0].num_tiles()};
  for (int64_t i = begin; i < end; ++i) {
    const Unit unit{unit_panels(args, i, PanelOrder::kAdjacent), args.is_gated};
    if (args.num_rows == 1)
      linear_single(args, unit, x);
    else
      linear_rows(args, unit, x, scratch);
  }
}
