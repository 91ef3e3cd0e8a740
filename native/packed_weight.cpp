#include "packed_weight.h"

#include <cstring>

namespace subsecond {
namespace {

// 32 four-bit codes in order of input -> the word order of a packed row.
void put_nibbles(const uint8_t* codes, uint8_t* out) {
  for (int j = 0; j < 8; ++j) {
    const unsigned word = codes[j] | codes[8 + j] << 4 | codes[16 + j] << 8 | codes[24 + j] << 12;
    out[2 * j] = static_cast<uint8_t>(word);
    out[2 * j + 1] = static_cast<uint8_t>(word >> 8);
  }
}

void low_high_nibbles(const uint8_t* stored, uint8_t* codes) {
  for (int j = 0; j < 16; ++j) {
    codes[j] = stored[j] & 15;
    codes[16 + j] = stored[j] >> 4;
  }
}

void pack_q4_0(const uint8_t* block, int64_t n, uint8_t* tile) {
  uint8_t codes[32];
  std::memcpy(tile + 2 * n, block, 2);
  low_high_nibbles(block + 2, codes);
  put_nibbles(codes, tile + 32 + 16 * n);
}

void pack_q4_1(const uint8_t* block, int64_t n, uint8_t* tile) {
  uint8_t codes[32];
  std::memcpy(tile + 2 * n, block, 2);
  std::memcpy(tile + 32 + 2 * n, block + 2, 2);
  low_high_nibbles(block + 4, codes);
  put_nibbles(codes, tile + 64 + 16 * n);
}

void pack_q5_0(const uint8_t* block, int64_t n, uint8_t* tile) {
  uint8_t codes[32];
  std::memcpy(tile + 2 * n, block, 2);
  std::memcpy(tile + 32 + 4 * n, block + 2, 4);
  low_high_nibbles(block + 6, codes);
  put_nibbles(codes, tile + 96 + 16 * n);
}

void pack_q8_0(const uint8_t* block, int64_t n, uint8_t* tile) {
  std::memcpy(tile + 2 * n, block, 2);
  std::memcpy(tile + 32 + 32 * n, block + 2, 32);
}

// A stored Q4_K block: d, dmin, twelve bytes of 6-bit scales and minimums, 128 bytes of codes.
void pack_q4_k(const uint8_t* block, int64_t n, uint8_t* super) {
  std::memcpy(super + 2 * n, block, 2);
  std::memcpy(super + 32 + 2 * n, block + 2, 2);
  const uint8_t* packed = block + 4;
  for (int j = 0; j < 8; ++j) {
    uint8_t* tile = super + 64 + 288 * j;
    if (j < 4) {
      tile[n] = packed[j] & 63;
      tile[16 + n] = packed[j + 4] & 63;
    } else {
      tile[n] = static_cast<uint8_t>((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4);
      tile[16 + n] = static_cast<uint8_t>((packed[j + 4] >> 4) | (packed[j] >> 6) << 4);
    }
    uint8_t codes[32];
    const uint8_t* stored = block + 16 + 32 * (j / 2);
    for (int k = 0; k < 32; ++k) codes[k] = j % 2 ? stored[k] >> 4 : stored[k] & 15;
    put_nibbles(codes, tile + 32 + 16 * n);
  }
}

// A stored Q6_K block: 128 bytes of low nibbles, 64 of high pairs, 16 signed scales, d.
void pack_q6_k(const uint8_t* block, int64_t n, uint8_t* super) {
  std::memcpy(super + 2 * n, block + 208, 2);
  for (int j = 0; j < 8; ++j) {
    uint8_t* tile = super + 64 + 416 * j;
    const int half = j / 4, quarter = j % 4;
    tile[n] = block[192 + 2 * j];
    tile[16 + n] = block[192 + 2 * j + 1];
    const uint8_t* low = block + 64 * half + 32 * (quarter % 2);
    const uint8_t* high = block + 128 + 32 * half;
    uint8_t codes[32], pairs[32];
    for (int k = 0; k < 32; ++k) {
      codes[k] = quarter < 2 ? low[k] & 15 : low[k] >> 4;
      pairs[k] = (high[k] >> (2 * quarter)) & 3;
    }
    for (int b = 0; b < 8; ++b)
      tile[32 + 8 * n + b] =
          static_cast<uint8_t>(pairs[b] | pairs[8 + b] << 2 | pairs[16 + b] << 4 | pairs[24 + b] << 6);
    put_nibbles(codes, tile + 160 + 16 * n);
  }
}

void pack_block(Format format, const uint8_t* block, int64_t n, uint8_t* super) {
  switch (format) {
    case Format::kQ4_0:
      return pack_q4_0(block, n, super);
    case Format::kQ4_1:
      return pack_q4_1(block, n, super);
    case Format::kQ5_0:
      return pack_q5_0(block, n, super);
    case Format::kQ8_0:
      return pack_q8_0(block, n, super);
    case Format::kQ4_K:
      return pack_q4_k(block, n, super);
    case Format::kQ6_K:
      return pack_q6_k(block, n, super);
    default:
      return;
  }
}

// Unquantized rows have no blocks: copy 32 inputs at a time, fewer at the end of a row.
void pack_plain_row(const uint8_t* row, int64_t num_inputs, int64_t element, int64_t n, uint8_t* panel) {
  for (int64_t k = 0; k < num_inputs; k += kTileInputs) {
    const int64_t count = num_inputs - k < kTileInputs ? num_inputs - k : kTileInputs;
    uint8_t* tile = panel + k * kPanelOutputs * element;
    std::memcpy(tile + n * kTileInputs * element, row + k * element, static_cast<size_t>(count * element));
  }
}

}  // namespace

const FormatInfo& format_info(Format format) { return kFormats[static_cast<int>(format)]; }

Format format_by_name(const char* name) {
  for (int i = 0; i < static_cast<int>(Format::kCount); ++i)
    if (std::strcmp(kFormats[i].name, name) == 0) return static_cast<Format>(i);
  return Format::kCount;
}

int64_t PackedWeight::panel_bytes() const {
  const FormatInfo& info = format_info(format);
  return num_tiles() / info.tiles_per_super * (info.header_bytes + info.tiles_per_super * info.tile_bytes);
}

int64_t packed_bytes(Format format, int64_t num_outputs, int64_t num_inputs) {
  const PackedWeight weight{format, num_outputs, num_inputs, nullptr};
  return weight.num_panels() * weight.panel_bytes();
}

void pack_weight(Format format, int64_t num_outputs, int64_t num_inputs, const uint8_t* stored, uint8_t* packed) {
  const FormatInfo& info = format_info(format);
  const PackedWeight weight{format, num_outputs, num_inputs, packed};
  const int64_t row_bytes = num_inputs / info.block_elements * info.block_bytes;
  const int64_t super_bytes = info.header_bytes + info.tiles_per_super * info.tile_bytes;
  std::memset(packed, 0, static_cast<size_t>(packed_bytes(format, num_outputs, num_inputs)));
  for (int64_t row = 0; row < num_outputs; ++row) {
    uint8_t* panel = packed + row / kPanelOutputs * weight.panel_bytes();
    const uint8_t* source = stored + row * row_bytes;
    if (info.block_elements == 1) {
      pack_plain_row(source, num_inputs, info.block_bytes, row % kPanelOutputs, panel);
      continue;
    }
    for (int64_t b = 0; b < num_inputs / info.block_elements; ++b)
      pack_block(format, source + b * info.block_bytes, row % kPanelOutputs, panel + b * super_bytes);
  }
}

}  // namespace subsecond
