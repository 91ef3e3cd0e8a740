// Tile instructions: the processor's own, or a plain emulation of them in builds that test the AMX kernels elsewhere.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace subsecond::amx {

// The 64 bytes that LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t column_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int num_rows, int num_bytes) {
    rows[tile] = static_cast<uint8_t>(num_rows);
    column_bytes[tile] = static_cast<uint16_t>(num_bytes);
  }
};

}  // namespace subsecond::amx

#if SUBSECOND_EMULATE_AMX

namespace subsecond::amx::emulated {

struct Tiles {
  TileConfig config;
  alignas(64) uint8_t bytes[8][16][64];
};
inline thread_local Tiles tiles;

inline void load_config(const TileConfig& config) {
  tiles.config = config;
  std::memset(tiles.bytes, 0, sizeof(tiles.bytes));
}

inline void zero(int tile) { std::memset(tiles.bytes[tile], 0, sizeof(tiles.bytes[tile])); }

inline void load(int tile, const void* base, int64_t stride) {
  zero(tile);
  for (int row = 0; row < tiles.config.rows[tile]; ++row)
    std::memcpy(tiles.bytes[tile][row], static_cast<const uint8_t*>(base) + row * stride,
                tiles.config.column_bytes[tile]);
}

inline void store(int tile, void* base, int64_t stride) {
  for (int row = 0; row < tiles.config.rows[tile]; ++row)
    std::memcpy(static_cast<uint8_t*>(base) + row * stride, tiles.bytes[tile][row], tiles.config.column_bytes[tile]);
}

// TDPBF16PS rounds every product and sum to float32, denormals to zero; here denormals stay, which no test can see.
inline void multiply_bf16(int sums, int left, int right) {
  const auto bf16 = [](const uint8_t* p) {
    const uint32_t bits = static_cast<uint32_t>(p[0]) << 16 | static_cast<uint32_t>(p[1]) << 24;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  };
  for (int row = 0; row < tiles.config.rows[sums]; ++row)
    for (int column = 0; column < tiles.config.column_bytes[sums] / 4; ++column) {
      float sum;
      std::memcpy(&sum, tiles.bytes[sums][row] + 4 * column, 4);
      for (int pair = 0; pair < tiles.config.column_bytes[left] / 4; ++pair)
        for (int i = 0; i < 2; ++i)
          sum += bf16(tiles.bytes[left][row] + 4 * pair + 2 * i) * bf16(tiles.bytes[right][pair] + 4 * column + 2 * i);
      std::memcpy(tiles.bytes[sums][row] + 4 * column, &sum, 4);
    }
}

// TDPBSUD: signed bytes of the left tile by unsigned bytes of the right one.
inline void multiply_bytes(int sums, int left, int right) {
  for (int row = 0; row < tiles.config.rows[sums]; ++row)
    for (int column = 0; column < tiles.config.column_bytes[sums] / 4; ++column) {
      int32_t sum;
      std::memcpy(&sum, tiles.bytes[sums][row] + 4 * column, 4);
      for (int k = 0; k < tiles.config.column_bytes[left]; ++k)
        sum += static_cast<int8_t>(tiles.bytes[left][row][k]) * tiles.bytes[right][k / 4][4 * column + k % 4];
      std::memcpy(tiles.bytes[sums][row] + 4 * column, &sum, 4);
    }
}

}  // namespace subsecond::amx::emulated

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbsud
#define _tile_zero(tile) subsecond::amx::emulated::zero(tile)
#define _tile_loadd(tile, base, stride) subsecond::amx::emulated::load(tile, base, stride)
#define _tile_stored(tile, base, stride) subsecond::amx::emulated::store(tile, base, stride)
#define _tile_dpbf16ps(sums, left, right) subsecond::amx::emulated::multiply_bf16(sums, left, right)
#define _tile_dpbsud(sums, left, right) subsecond::amx::emulated::multiply_bytes(sums, left, right)

#endif

namespace subsecond::amx {

inline void load_tile_config(const TileConfig& config) {
#if SUBSECOND_EMULATE_AMX
  emulated::load_config(config);
#else
  // gcc 12 declares only the first 8 bytes as read by the intrinsic and would drop the stores to the rest.
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
#endif
}

inline void release_tiles() {
#if !SUBSECOND_EMULATE_AMX
  _tile_release();
#endif
}

// gcc 12 does not declare that loading a tile reads memory; this keeps earlier stores before it. It emits nothing.
inline void before_tile_loads() { __asm__ volatile("" ::: "memory"); }

}  // namespace subsecond::amx
