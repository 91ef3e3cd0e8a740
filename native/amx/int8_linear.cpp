// Linears of channel formats in tiles of bytes, for several rows; one row or a few go to the AVX-512-VNNI kernels,
// whose integers are the same.
//
// Activations are the row operand (16 rows x 64 inputs, as they lie), weights the column operand: two tiles of
// packed_weight.h side by side are 64 inputs x 16 outputs. Two row tiles by two panels are multiplied at once. Inputs
// are blocked so that the panels' part stays in the first-level cache while it meets a chunk of rows.

#include "amx.h"

namespace subsecond::amx {
namespace {

#include "../avx512/vector.inl.h"
#include "../elementwise.inl.h"

// uses both
#include "../channel_operands.inl.h"

constexpr int64_t kMinRows = 4;          // fewer take less time in vectors than a tile takes for its sixteen
constexpr int64_t kRowChunk = 128;       // rows whose sums are kept
constexpr int64_t kBlockTiles = 16;      // of 32 inputs: 16 KB of two panels
constexpr int64_t kTileRowBytes = 1024;  // of a tile register

int64_t row_tiles(int64_t num_rows) { return (num_rows + 15) / 16; }

// The codes of a panel; where their number of tiles is odd, the last one is repeated beside zeros.
struct Plane {
  const uint8_t* codes;
  const uint8_t* last;

  const uint8_t* pair(int64_t t, int64_t num_tiles) const {
    return t + 1 < num_tiles ? codes + t * ChannelPanel::kTileBytes : last;
  }
};

// Tiles [begin, end) of 32 inputs, for two row tiles by two planes: sums of row tile r and plane p in tile 2 r + p,
// whose place in memory is sums + (16 r * 4 + p) * 16.
void multiply_2x2(const QuantizedRows& rows, int64_t first, int64_t second, const Plane* planes, int64_t begin,
                  int64_t end, int32_t* sums, int64_t to_second) {
  constexpr int64_t kStride = 4 * 16 * sizeof(int32_t);
  before_tile_loads();
  _tile_loadd(0, sums, kStride);
  _tile_loadd(1, sums + 16, kStride);
  _tile_loadd(2, sums + to_second, kStride);
  _tile_loadd(3, sums + to_second + 16, kStride);
  for (int64_t t = begin; t < end; t += 2) {
    _tile_loadd(4, rows.codes(first) + t * kTileInputs, rows.row_bytes());
    _tile_loadd(5, rows.codes(second) + t * kTileInputs, rows.row_bytes());
    _tile_loadd(6, planes[0].pair(t, rows.num_tiles), 64);
    _tile_loadd(7, planes[1].pair(t, rows.num_tiles), 64);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
  _tile_stored(0, sums, kStride);
  _tile_stored(1, sums + 16, kStride);
  _tile_stored(2, sums + to_second, kStride);
  _tile_stored(3, sums + to_second + 16, kStride);
}

// Sums [rows of the chunk][4][16] of `count` rows from `row` on. Of an odd number of row tiles the last is multiplied
// into a spare one as well.
void multiply_chunk(const QuantizedRows& rows, int64_t row, int64_t count, const Plane* planes, int32_t* sums) {
  std::memset(sums, 0, static_cast<size_t>((row_tiles(count) + 1) * 16 * 64) * sizeof(int32_t));
  for (int64_t begin = 0; begin < rows.num_tiles; begin += kBlockTiles) {
    const int64_t end = begin + kBlockTiles < rows.num_tiles ? begin + kBlockTiles : rows.num_tiles;
    for (int p = 0; p < 4; p += 2)
      for (int64_t tile = 0; tile < row_tiles(count); tile += 2) {
        const bool has_second = tile + 1 < row_tiles(count);
        const int64_t first = row + 16 * tile;
        multiply_2x2(rows, first, has_second ? first + 16 : first, planes + p, begin, end, sums + (tile * 64 + p) * 16,
                     16 * 64);
      }
  }
}

struct Scratch {
  uint8_t* memory;
  int64_t num_tiles;

  uint8_t* unpacked() const { return memory; }
  uint8_t* last(int place) const { return memory + 4 * num_tiles * ChannelPanel::kTileBytes + place * kTileRowBytes; }
  int32_t* sums() const { return reinterpret_cast<int32_t*>(last(4)); }
  int64_t num_bytes() const {
    return 4 * num_tiles * ChannelPanel::kTileBytes + 4 * kTileRowBytes +
           (kRowChunk + 16) * 64 * static_cast<int64_t>(sizeof(int32_t));
  }
};

void channel_unit(const LinearArgs& args, const ChannelUnit& unit, const QuantizedRows& rows, const Scratch& scratch) {
  const uint8_t* codes[4];
  unit.find_planes(scratch.unpacked(), codes);
  Plane planes[4];
  for (int place = 0; place < 4; ++place) {
    planes[place] = {codes[place], scratch.last(place)};
    if (rows.num_tiles % 2 == 0) continue;
    std::memcpy(scratch.last(place), codes[place] + (rows.num_tiles - 1) * ChannelPanel::kTileBytes,
                ChannelPanel::kTileBytes);
    std::memset(scratch.last(place) + ChannelPanel::kTileBytes, 0, ChannelPanel::kTileBytes);
  }
  for (int64_t row = 0; row < args.num_rows; row += kRowChunk) {
    const int64_t count = args.num_rows - row < kRowChunk ? args.num_rows - row : kRowChunk;
    multiply_chunk(rows, row, count, planes, scratch.sums());
    write_channels(args, unit, rows, row, count, scratch.sums(), 128);
  }
}

}  // namespace

int64_t quantized_bytes(int64_t num_rows, int64_t width) {
  // whole row tiles are read; what stands in the rows beyond the last is dropped
  const int64_t num_padded = num_rows < kMinRows ? num_rows : 16 * row_tiles(num_rows);
  return avx512vnni::kernels().channel.activation_bytes(num_padded, width);
}

int64_t channel_scratch_bytes(int64_t max_inputs) {
  return Scratch{nullptr, (max_inputs + kTileInputs - 1) / kTileInputs}.num_bytes();
}

void channel_linear(const LinearArgs& args, int64_t begin, int64_t end, uint8_t* scratch) {
  if (args.num_rows < kMinRows) return avx512vnni::kernels().channel.linear(args, begin, end, scratch);
  const QuantizedRows rows{args.packed, args.num_rows, args.weights[0].num_tiles()};
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.set(tile, 16, 64);
  load_tile_config(config);
  for (int64_t unit = begin; unit < end; ++unit)
    channel_unit(args, ChannelUnit(args, unit), rows, {scratch, rows.num_tiles});
  release_tiles();
}

}  // namespace subsecond::amx
