// Linear layers in bf16 arithmetic: weights are unpacked to bfloat16 tiles in cache and multiplied by TDPBF16PS.
//
// out[n, row] = sum over tiles t of W[n, 32 t ..] . X[row, 32 t ..], summed in order of t, whatever the number of rows.
// The weights are the row operand (16 outputs x 32 inputs), since a stored row of codes unpacks to a row of a tile; the
// activations are the column operand, packed [row tile][t][16 input pairs][rows][2]. With one row the column operand is
// one column wide and a step reads 64 bytes of activations.
//
// Bound at one row: bytes of weights from memory, then the vector work of unpacking (see unpack.inl.h).

#include "amx.h"

namespace subsecond::amx {
namespace {

#include "../avx512/vector.inl.h"
#include "../elementwise.inl.h"
#include "../tile_scales.inl.h"
#include "unpack.inl.h"

constexpr int kTileBytes = 1024;  // an unpacked weight tile
constexpr int kTileValues = 512;
constexpr int kPanels = 4;          // of a unit
constexpr int kStreamRowTiles = 2;  // up to this many row tiles, unpacking and multiplying alternate tile by tile

// Rows of a row tile: all sixteen, or fewer where one tile holds the whole step.
int64_t tile_rows(int64_t num_rows) { return num_rows < 16 ? num_rows : 16; }

// The operands of one unit of work.
struct Operands {
  const uint8_t* panels[kPanels];
  const uint8_t* packed;  // activations of the first row tile
  int64_t num_tiles;      // along the inputs
  int64_t column_bytes;   // 4 * tile_rows

  int64_t tile_bytes() const { return 16 * column_bytes; }
  int64_t row_tile_bytes() const { return num_tiles * tile_bytes(); }
};

inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Sums to memory, four of [16 outputs][16 rows], or of [16 outputs] alone when a tile is one column wide.
inline void store_sums(float* sums, int64_t column_bytes) {
  const int64_t stride = column_bytes == 4 ? 4 : 64;
  _tile_stored(0, sums, stride);
  _tile_stored(1, sums + 256, stride);
  _tile_stored(2, sums + 512, stride);
  _tile_stored(3, sums + 768, stride);
}

// Four panels by one row tile: sums of panel p in tile p.
inline void multiply_4x1(const uint16_t* weights, const uint8_t* x, int64_t stride) {
  before_tile_loads();
  _tile_loadd(6, x, stride);
  _tile_loadd(4, weights, 64);
  _tile_loadd(5, weights + kTileValues, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 5, 6);
  _tile_loadd(4, weights + 2 * kTileValues, 64);
  _tile_loadd(5, weights + 3 * kTileValues, 64);
  _tile_dpbf16ps(2, 4, 6);
  _tile_dpbf16ps(3, 5, 6);
}

// Two panels by two row tiles, the second of which lies `row_tile_bytes` further: sums of panel p and row tile t in
// tile 2 p + t.
inline void multiply_2x2(const uint16_t* first, const uint16_t* second, const uint8_t* x, int64_t row_tile_bytes,
                         int64_t stride) {
  before_tile_loads();
  _tile_loadd(4, first, 64);
  _tile_loadd(5, second, 64);
  _tile_loadd(6, x, stride);
  _tile_loadd(7, x + row_tile_bytes, stride);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// Unpacks P panels tile by tile into a ring of two slots in the first-level cache: while one is read, the next is
// written.
template <Format F, int P>
class PanelStream {
 public:
  PanelStream(const uint8_t* const* panels, int64_t num_tiles, uint16_t* ring)
      : panels_(panels), num_tiles_(num_tiles), ring_(ring) {
    read(0);
    read(1);
    unpack(0);
  }

  // Slot of tile t, [panel][16][32]; unpacks the tile after it and reads the scales of the one after that.
  const uint16_t* advance(int64_t t) {
    read(t + 2);
    unpack(t + 1);
    return slot(t);
  }

 private:
  uint16_t* slot(int64_t t) const { return ring_ + t % 2 * P * kTileValues; }
  void read(int64_t t) {
    if (t < num_tiles_)
      for (int p = 0; p < P; ++p) read_scales<F>(panels_[p], t, scales_[t % 2][p]);
  }
  void unpack(int64_t t) {
    if (t < num_tiles_)
      for (int p = 0; p < P; ++p) unpack_tile<F>(panels_[p], t, scales_[t % 2][p], slot(t) + p * kTileValues);
  }

  const uint8_t* const* panels_;
  int64_t num_tiles_;
  uint16_t* ring_;
  Scales scales_[2][P];
};

// Up to sixteen rows: four panels, unpacked while they are multiplied.
template <Format F>
void stream_4x1(const Operands& o, uint16_t* ring, float* sums) {
  PanelStream<F, kPanels> stream(o.panels, o.num_tiles, ring);
  zero_sums();
  for (int64_t t = 0; t < o.num_tiles; ++t)
    multiply_4x1(stream.advance(t), o.packed + t * o.tile_bytes(), o.column_bytes);
  store_sums(sums, o.column_bytes);
}

// Up to thirty-two rows: the same for two panels, panels[first] and panels[first + 1].
template <Format F>
void stream_2x2(const Operands& o, int first, uint16_t* ring, float* sums) {
  PanelStream<F, 2> stream(o.panels + first, o.num_tiles, ring);
  zero_sums();
  for (int64_t t = 0; t < o.num_tiles; ++t) {
    const uint16_t* weights = stream.advance(t);
    multiply_2x2(weights, weights + kTileValues, o.packed + t * o.tile_bytes(), o.row_tile_bytes(), o.column_bytes);
  }
  store_sums(sums, o.column_bytes);
}

// Many rows: two panels were unpacked in full, [panel][t]. A second row tile that does not exist repeats the first.
void multiply_unpacked(const Operands& o, const uint16_t* weights, int64_t row_tile, int64_t num_row_tiles,
                       float* sums) {
  const int64_t to_second = row_tile + 1 < num_row_tiles ? o.row_tile_bytes() : 0;
  const uint16_t* second = weights + o.num_tiles * kTileValues;
  const uint8_t* x = o.packed + row_tile * o.row_tile_bytes();
  zero_sums();
  for (int64_t t = 0; t < o.num_tiles; ++t)
    multiply_2x2(weights + t * kTileValues, second + t * kTileValues, x + t * o.tile_bytes(), to_second,
                 o.column_bytes);
  store_sums(sums, o.column_bytes);
}

template <Format F>
void unpack_panel(const uint8_t* panel, int64_t num_tiles, uint16_t* out) {
  constexpr int64_t ahead = 4;
  Scales scales[ahead];
  for (int64_t t = 0; t < ahead && t < num_tiles; ++t) read_scales<F>(panel, t, scales[t]);
  for (int64_t t = 0; t < num_tiles; ++t) {
    unpack_tile<F>(panel, t, scales[t % ahead], out + t * kTileValues);
    if (t + ahead < num_tiles) read_scales<F>(panel, t + ahead, scales[t % ahead]);
  }
}

void unpack_sparse_panel(const uint8_t* data, int64_t num_tiles, uint16_t* out) {
  const SparsePanel panel{data, num_tiles};
  for (int64_t n = 0; n < kPanelOutputs; ++n) {
    const uint8_t* weights = panel.weights(n);
    for (int64_t t = 0; t < num_tiles; ++t) {
      const uint32_t mask = mask_at(panel.masks(n), t), first = mask & 0xffff, second = mask >> 16;
      const V low = expand_halves(weights, first);
      weights += 2 * __builtin_popcount(first);
      const V high = expand_halves(weights, second);
      weights += 2 * __builtin_popcount(second);
      store_row(out + t * kTileValues + n * kTileInputs, round_pair(low.v, high.v));
    }
  }
}

void unpack_list_panel(const uint8_t* data, int64_t num_tiles, uint16_t* out) {
  const ListPanel panel{data};
  std::memset(out, 0, static_cast<size_t>(num_tiles * kTileBytes));
  for (int64_t n = 0; n < kPanelOutputs; ++n)
    for (int64_t g = panel.start(n); g < panel.start(n + 1); ++g) {
      const uint8_t* group = panel.group(g);
      alignas(64) uint16_t weights[32];
      store_row(weights, round_pair(halves(group + ListPanel::kWeightsAt), _mm512_setzero_ps()));
      for (int64_t i = 0; i < ListPanel::kGroupWeights; ++i) {
        const int64_t k = half_word(group, i);
        // a zero fills up, and would cover a weight of input 0
        if (weights[i] & 0x7fff) out[k / kTileInputs * kTileValues + n * kTileInputs + k % kTileInputs] = weights[i];
      }
    }
}

// Panels of formats with offsets are unpacked in full for any number of rows: `unpack` alone.
struct FormatKernels {
  void (*stream_4x1)(const Operands&, uint16_t*, float*);
  void (*stream_2x2)(const Operands&, int, uint16_t*, float*);
  void (*unpack)(const uint8_t*, int64_t, uint16_t*);
};

constexpr auto kFormatKernels =
    format_table([]<Format F>() { return FormatKernels{stream_4x1<F>, stream_2x2<F>, unpack_panel<F>}; });

constexpr FormatKernels kSparseKernels = {nullptr, nullptr, unpack_sparse_panel};
constexpr FormatKernels kListKernels = {nullptr, nullptr, unpack_list_panel};

inline const FormatKernels& kernels_of(Format format) {
  if (format == Format::kF16_LIST) return kListKernels;
  return format == Format::kF16_SPARSE ? kSparseKernels : kFormatKernels[format];
}

// Transpose 16 x 16 words of 32 bits in registers.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

inline void transpose_in_place(float* sums) {
  __m512i r[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_load_si512(sums + 16 * i);
  transpose(r);
  for (int i = 0; i < 16; ++i) _mm512_store_si512(sums + 16 * i, r[i]);
}

// The panels of a unit in the order of the sums: with partners, gate panels at even places and up panels at odd ones.
struct Unit {
  UnitPanels work;
  bool is_gated;

  int num_places() const { return is_gated ? 2 * work.num_panels : work.num_panels; }
  int weight(int place) const { return is_gated ? place % 2 : work.weight; }
  int64_t panel(int place) const { return work.panels[is_gated ? place / 2 : place]; }
};

// Finish the sums of one place and row tile: sums [16 outputs][rows], `up` those of the partner.
void write_panel(const LinearArgs& args, const Unit& unit, int place, int64_t row_tile, float* sums, float* up) {
  if (args.num_rows > 1) {
    transpose_in_place(sums);
    if (up) transpose_in_place(up);
  }
  const int64_t first = row_tile * 16, column = unit.panel(place) * kPanelOutputs;
  const int64_t count = args.num_rows - first < 16 ? args.num_rows - first : 16;
  for (int64_t r = 0; r < count; ++r)
    write_outputs(args, unit.weight(place), first + r, column, unit.work.column_offset + column, sums + 16 * r,
                  up ? up + 16 * r : nullptr);
}

// Two places by two row tiles, as multiply_2x2 leaves them.
void write_2x2(const LinearArgs& args, const Unit& unit, int place, int64_t row_tile, float* sums) {
  for (int t = 0; t < 2 && (row_tile + t) * 16 < args.num_rows; ++t) {
    if (unit.is_gated) {
      write_panel(args, unit, place, row_tile + t, sums + 256 * t, sums + 512 + 256 * t);
      continue;
    }
    for (int p = 0; p < 2 && place + p < unit.num_places(); ++p)
      write_panel(args, unit, place + p, row_tile + t, sums + 512 * p + 256 * t, nullptr);
  }
}

void linear_unit(const LinearArgs& args, const Unit& unit, uint8_t* scratch) {
  alignas(64) float sums[1024];
  uint16_t* unpacked = reinterpret_cast<uint16_t*>(scratch);
  const int64_t num_row_tiles = (args.num_rows + 15) / 16;
  const int num_places = unit.num_places();
  const auto weight = [&](int place) -> const PackedWeight& { return args.weights[unit.weight(place)]; };
  Operands o{};
  o.packed = args.packed;
  o.num_tiles = weight(0).num_tiles();
  o.column_bytes = 4 * tile_rows(args.num_rows);
  for (int i = 0; i < kPanels; ++i) {
    const int place =
        i < num_places ? i : num_places - 1;  // a missing panel repeats the last one; its sums are dropped
    o.panels[i] = weight(place).panel(unit.panel(place));
  }
  const Format format = weight(0).format;
  const bool is_streamed =
      !has_offsets(format) && num_row_tiles <= kStreamRowTiles && (!unit.is_gated || weight(1).format == format);
  if (is_streamed && num_row_tiles == 1) {
    kernels_of(format).stream_4x1(o, unpacked, sums);
    const int step = unit.is_gated ? 2 : 1;
    for (int place = 0; place < num_places; place += step)
      write_panel(args, unit, place, 0, sums + 256 * place, unit.is_gated ? sums + 256 * (place + 1) : nullptr);
    return;
  }
  for (int place = 0; place < num_places; place += 2) {
    if (is_streamed) {
      kernels_of(format).stream_2x2(o, place, unpacked, sums);
      write_2x2(args, unit, place, 0, sums);
      continue;
    }
    const int second = place + 1 < num_places ? place + 1 : place;
    kernels_of(weight(place).format).unpack(o.panels[place], o.num_tiles, unpacked);
    kernels_of(weight(second).format).unpack(o.panels[place + 1], o.num_tiles, unpacked + o.num_tiles * kTileValues);
    for (int64_t row_tile = 0; row_tile < num_row_tiles; row_tile += 2) {
      multiply_unpacked(o, unpacked, row_tile, num_row_tiles, sums);
      write_2x2(args, unit, place, row_tile, sums);
    }
  }
}

inline __m512i pack_32(const float* x, int64_t left, const float* norm_weight, V factor) {
  V low = left > 0 ? load_lanes(x, left) : V::set1(0.0f);
  V high = left > 16 ? load_lanes(x + 16, left - 16) : V::set1(0.0f);
  if (norm_weight) {
    if (left > 0) low = V::mul(V::mul(low, factor), load_lanes(norm_weight, left));
    if (left > 16) high = V::mul(V::mul(high, factor), load_lanes(norm_weight + 16, left - 16));
  }
  return round_pair(low.v, high.v);
}

}  // namespace

int64_t activation_bytes(int64_t num_rows, int64_t width) {
  const int64_t num_row_tiles = (num_rows + 15) / 16;
  return num_row_tiles * tile_rows(num_rows) * padded_width(width) * 2;
}

int64_t linear_scratch_bytes(int64_t max_inputs) {
  const int64_t unpacked = 2 * padded_width(max_inputs) / kTileInputs * kTileBytes;
  const int64_t ring = kPanels * 2 * kTileBytes;
  return unpacked > ring ? unpacked : ring;
}

void pack_rows(const PackArgs& args, int64_t begin, int64_t end, uint8_t*) {
  const int64_t rows = tile_rows(args.num_rows), num_tiles = padded_width(args.width) / kTileInputs;
  for (int64_t group = begin; group < end; ++group) {
    uint8_t* out = args.packed + group * num_tiles * 64 * rows;
    const int64_t first = group * 16, count = args.num_rows - first < 16 ? args.num_rows - first : 16;
    float factors[16];
    for (int64_t r = 0; r < count; ++r)
      factors[r] = args.norm_weight ? norm_factor(args.input.row(first + r), args.width, args.norm_eps) : 1.0f;
    for (int64_t t = 0; t < num_tiles; ++t, out += 64 * rows) {
      const int64_t k = t * kTileInputs, left = args.width - k;
      const float* norm = args.norm_weight ? args.norm_weight + k : nullptr;
      __m512i r[16];
      for (int64_t i = 0; i < 16; ++i)
        r[i] = i < count ? pack_32(args.input.row(first + i) + k, left, norm, V::set1(factors[i]))
                         : _mm512_setzero_si512();
      if (rows == 1) {
        _mm512_storeu_si512(out, r[0]);
        continue;
      }
      transpose(r);
      for (int i = 0; i < 16; ++i) _mm512_mask_storeu_epi32(out + i * 4 * rows, V::lanes(static_cast<int>(rows)), r[i]);
    }
  }
}

void linear(const LinearArgs& args, int64_t begin, int64_t end, uint8_t* scratch) {
  TileConfig config;
  const int columns = static_cast<int>(4 * tile_rows(args.num_rows));
  for (int tile = 0; tile < 8; ++tile) config.set(tile, 16, tile == 4 || tile == 5 ? 64 : columns);
  load_tile_config(config);
  for (int64_t unit = begin; unit < end; ++unit)
    linear_unit(args, {unit_panels(args, unit, PanelOrder::kStreams), args.is_gated}, scratch);
  release_tiles();
}

}  // namespace subsecond::amx
