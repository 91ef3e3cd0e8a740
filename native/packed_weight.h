// Layout of packed weights: the stored blocks of a file, reordered so that one sequential read feeds sixteen outputs.
//
// A weight of N outputs and K inputs is cut into panels of 16 outputs and tiles of 32 inputs:
//
//   panel 0: [super][super]...   panel 1: ...        super = header + tiles_per_super tiles
//
// A tile holds, for its 16 outputs n and 32 inputs k (d, m: fp16[16]; q: codes):
//
//   Q4_0  d            q[16][16]         w = d (q - 8)
//   Q4_1  d m          q[16][16]         w = d q + m
//   Q5_0  d high[16]   q[16][16]         w = d (q + 16 bit_k(high) - 16), high: uint32
//   Q8_0  d            q[16][32]         w = d q, q: int8
//   Q4_K  s[16] t[16]  q[16][16]         w = d s q - m t, header: d m for 8 tiles; s, t: uint8
//   Q6_K  s[2][16] h[16][8] q[16][16]    w = d s[k/16] (q + 16 h - 32), header: d for 8 tiles; s: int8
//   F16, BF16, F32     w[16][32]
//
// Four-bit codes: 8 little-endian words a row; input k = 8 l + j is bits [4 l, 4 l + 4) of word j, so that one
// broadcast and one variable shift bring all 32 into order. h: input k = 8 l + j is bits [2 l, 2 l + 2) of byte j. N is
// padded to 16 and K to 32 with zero weights.
#pragma once

#include <cstddef>
#include <cstdint>

namespace subsecond {

constexpr int64_t kPanelOutputs = 16;
constexpr int64_t kTileInputs = 32;

enum class Format : int32_t { kF32, kF16, kBF16, kQ4_0, kQ4_1, kQ5_0, kQ8_0, kQ4_K, kQ6_K, kCount };

struct FormatInfo {
  const char* name;        // as in GGUF
  int64_t block_elements;  // of the stored block
  int64_t block_bytes;     // of the stored block
  int64_t tiles_per_super;
  int64_t header_bytes;  // of a packed super
  int64_t tile_bytes;    // of a packed tile
};

// In the order of Format. Kernels read it at compile time; format_info serves the rest.
inline constexpr FormatInfo kFormats[] = {
    {"F32", 1, 4, 1, 0, 2048},   {"F16", 1, 2, 1, 0, 1024},      {"BF16", 1, 2, 1, 0, 1024},
    {"Q4_0", 32, 18, 1, 0, 288}, {"Q4_1", 32, 20, 1, 0, 320},    {"Q5_0", 32, 22, 1, 0, 352},
    {"Q8_0", 32, 34, 1, 0, 544}, {"Q4_K", 256, 144, 8, 64, 288}, {"Q6_K", 256, 210, 8, 64, 416},
};
static_assert(sizeof(kFormats) / sizeof(kFormats[0]) == static_cast<size_t>(Format::kCount));

const FormatInfo& format_info(Format format);

// The format of that GGUF name; kCount where there is none.
Format format_by_name(const char* name);

struct PackedWeight {
  Format format;
  int64_t num_outputs;  // N
  int64_t num_inputs;   // K
  const uint8_t* data;

  int64_t num_panels() const { return (num_outputs + kPanelOutputs - 1) / kPanelOutputs; }
  int64_t num_tiles() const { return (num_inputs + kTileInputs - 1) / kTileInputs; }
  int64_t panel_bytes() const;
};

// Bytes of a packed weight, padding included.
int64_t packed_bytes(Format format, int64_t num_outputs, int64_t num_inputs);

// Reorder the rows of a stored tensor (num_outputs rows of stored blocks) into `packed`, which is written in full.
void pack_weight(Format format, int64_t num_outputs, int64_t num_inputs, const uint8_t* stored, uint8_t* packed);

}  // namespace subsecond
