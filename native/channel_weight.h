// Weights of the channel formats (see packed_weight.h): where the parts of a panel lie, and how they are made from
// float32 weights.
#pragma once

#include "packed_weight.h"

namespace subsecond {

// Products of 8-bit codes and 8-bit weights are summed in 32 bits over all inputs: 255 * 127 * 65536 < 2^31.
constexpr int64_t kMaxChannelInputs = 65536;

struct ChannelPanel {
  Format format;
  int64_t num_tiles;

  static constexpr int64_t kScaleBytes = 64;
  static constexpr int64_t kTileMultiplierBytes = 8;
  // Codes of a tile as unsigned bytes, as INT8 stores them and INT4 is unpacked to.
  static constexpr int64_t kTileBytes = 512;

  int64_t multipliers_at() const { return kScaleBytes; }
  int64_t codes_at() const {
    return format == Format::kINT8 ? kScaleBytes : kScaleBytes + (kTileMultiplierBytes * num_tiles + 63) / 64 * 64;
  }
  int64_t tile_bytes() const { return format == Format::kINT8 ? kTileBytes : kTileBytes / 2; }
  int64_t num_bytes() const { return codes_at() + num_tiles * tile_bytes(); }
  // Of a panel of a nested format; residuals stand behind all panels.
  int64_t residual_bytes() const { return num_tiles * kTileBytes / 2; }
  int64_t residual_at(int64_t num_panels, int64_t panel) const {
    return num_panels * num_bytes() + panel * residual_bytes();
  }
};

// Quantize outputs [begin, end) of a weight; `begin` is a multiple of 16, `rows` [end - begin][num_inputs] are their
// float32 weights, `packed` is the whole weight.
//
// INT8 rounds to the nearest of 255 levels up to the largest magnitude. INT4 does so in two steps (progressive
// quantization, Lin et al. 2024, arXiv 2405.04532): groups of 32 inputs have an integer multiplier of a common scale.
// Nested formats, both the same, round to eight bits first: -128 to 120, so that a residual of four bits leads there
// from any multiple of a multiplier up to 16. The sign of the scale is that which needs the smaller one.
void quantize_weight(Format format, int64_t num_outputs, int64_t num_inputs, const float* rows, int64_t begin,
                     int64_t end, uint8_t* packed);

}  // namespace subsecond
