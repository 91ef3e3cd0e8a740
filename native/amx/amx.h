// What the AMX kernels share: tile configuration and the entry points of their files.
#pragma once

#include <immintrin.h>

#include "../kernels.h"

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

// gcc 12 declares only the first 8 bytes as read by the intrinsic and would drop the stores to the rest.
inline void load_tile_config(const TileConfig& config) {
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// gcc 12 does not declare that loading a tile reads memory; this keeps earlier stores before it. It emits nothing.
inline void before_tile_loads() { __asm__ volatile("" ::: "memory"); }

int64_t activation_bytes(int64_t num_rows, int64_t width);
int64_t linear_scratch_bytes(int64_t max_inputs);
void pack_rows(const PackArgs&, int64_t begin, int64_t end, uint8_t* scratch);
void linear(const LinearArgs&, int64_t begin, int64_t end, uint8_t* scratch);

int64_t head_bytes(int64_t head_dim);
int64_t attend_rows(int64_t heads_per_kv_head);
int64_t attend_scratch_bytes(int64_t head_dim);
void store_kv(const AttentionArgs&, const Span&, int64_t begin, int64_t end, int64_t kv_head, uint8_t* scratch);
void attend(const AttentionArgs&, const Span&, int64_t begin, int64_t end, int64_t kv_head, uint8_t* scratch);

}  // namespace subsecond::amx
