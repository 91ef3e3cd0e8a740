// What the tile products of AMX do at most, their operands loaded from the first-level cache as in a real product; see
// probe.h.

#include "../probe.h"

#include "amx.h"

namespace subsecond::amx {
namespace {

constexpr int kTileBytes = 1024;
constexpr int64_t kRoundProducts = 4;  // of two row tiles and two column tiles

// `multiply` adds the products of tiles 4, 5 (rows) and 6, 7 (columns) to tiles 0 to 3.
template <class Multiply>
inline void run_products(int64_t num_rounds, Multiply multiply) {
  alignas(64) static uint8_t operands[4 * kTileBytes] = {};
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.set(tile, 16, 64);
  load_tile_config(config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t round = 0; round < num_rounds; ++round) {
    before_tile_loads();
    _tile_loadd(4, operands, 64);
    _tile_loadd(6, operands + kTileBytes, 64);
    _tile_loadd(5, operands + 2 * kTileBytes, 64);
    _tile_loadd(7, operands + 3 * kTileBytes, 64);
    multiply();
  }
  _tile_release();
}

void dpbf16ps(int64_t num_rounds) {
  run_products(num_rounds, [] {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  });
}

void dpbusd(int64_t num_rounds) {
  run_products(num_rounds, [] {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  });
}

constexpr Instruction kInstructions[] = {
    {"tdpbf16ps", kRoundProducts * 16 * 16 * 32 * 2, dpbf16ps},
    {"tdpbusd", kRoundProducts * 16 * 16 * 64 * 2, dpbusd},
};

}  // namespace

IsaProbe probe() { return {kInstructions, 2, nullptr}; }

}  // namespace subsecond::amx
