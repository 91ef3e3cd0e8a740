#include "packed_weight.h"

#include <cstring>

#include "channel_weight.h"

namespace subsecond {
namespace {

// A stored block, spelled out: codes in order of input, scales and minimums in order of the inputs that they serve.
struct Block {
  uint8_t codes[256];
  uint8_t scales[16];
  uint8_t minimums[16];
};

// Fields of `bits` bits to codes: each run of `run` bytes holds all its lowest fields first, then the next ones. With
// `place` > 0 they are added to the codes at that bit.
template <int run, int bits, int place = 0>
void split(const uint8_t* stored, int num_bytes, uint8_t* codes) {
  for (int begin = 0; begin < num_bytes; begin += run)
    for (int shift = 0; shift < 8; shift += bits, codes += run)
      for (int i = 0; i < run; ++i) {
        const int field = (stored[begin + i] >> shift) & ((1 << bits) - 1);
        codes[i] = static_cast<uint8_t>(place > 0 ? codes[i] | field << place : field);
      }
}

// The bits of four bytes, lowest first, at bit 4 of 32 codes: eight at a time, one a byte of a word.
void add_fifth_bits(const uint8_t* stored, uint8_t* codes) {
  for (int i = 0; i < 4; ++i) {
    const uint64_t single = stored[i] * uint64_t{0x0101010101010101} & 0x8040201008040201;
    uint64_t eight;
    std::memcpy(&eight, codes + 8 * i, 8);
    eight |= (single + 0x7f7f7f7f7f7f7f7f) >> 3 & 0x1010101010101010;
    std::memcpy(codes + 8 * i, &eight, 8);
  }
}

// Twelve bytes: eight scales and eight minimums of six bits each (ggml-quants.c, get_scale_min_k4).
void read_six_bit_scales(const uint8_t* packed, Block& block) {
  for (int j = 0; j < 4; ++j) {
    block.scales[j] = packed[j] & 63;
    block.minimums[j] = packed[j + 4] & 63;
    block.scales[j + 4] = static_cast<uint8_t>((packed[j + 8] & 15) | (packed[j] >> 6) << 4);
    block.minimums[j + 4] = static_cast<uint8_t>((packed[j + 8] >> 4) | (packed[j + 4] >> 6) << 4);
  }
}

// Readers of stored blocks (ggml-common.h); d and m are copied by pack_block.

template <int start>
void read_four_bits(const uint8_t* stored, Block& block) {
  split<16, 4>(stored + start, 16, block.codes);
}

template <int start>
void read_five_bits(const uint8_t* stored, Block& block) {
  split<16, 4>(stored + start + 4, 16, block.codes);
  add_fifth_bits(stored + start, block.codes);
}

void read_q8_0(const uint8_t* stored, Block& block) { std::memcpy(block.codes, stored + 2, 32); }

void read_q2_k(const uint8_t* stored, Block& block) {
  for (int i = 0; i < 16; ++i) {
    block.scales[i] = stored[i] & 15;
    block.minimums[i] = stored[i] >> 4;
  }
  split<32, 2>(stored + 16, 64, block.codes);
}

// Scales of six bits, less 32: sixteen low nibbles, then sixteen pairs.
void read_q3_k(const uint8_t* stored, Block& block) {
  split<8, 4>(stored + 96, 8, block.scales);
  split<4, 2, 4>(stored + 104, 4, block.scales);
  for (uint8_t& scale : block.scales) scale = static_cast<uint8_t>(scale - 32);
  split<32, 2>(stored + 32, 64, block.codes);
  split<32, 1, 2>(stored, 32, block.codes);
}

void read_q4_k(const uint8_t* stored, Block& block) {
  read_six_bit_scales(stored + 4, block);
  split<32, 4>(stored + 16, 128, block.codes);
}

void read_q5_k(const uint8_t* stored, Block& block) {
  read_six_bit_scales(stored + 4, block);
  split<32, 4>(stored + 48, 128, block.codes);
  split<32, 1, 4>(stored + 16, 32, block.codes);
}

void read_q6_k(const uint8_t* stored, Block& block) {
  std::memcpy(block.scales, stored + 192, 16);
  split<64, 4>(stored, 128, block.codes);
  split<32, 2, 4>(stored + 128, 64, block.codes);
}

// Scales of six bits, less 32: a word of pairs, then nibbles.
void read_iq4_xs(const uint8_t* stored, Block& block) {
  for (int i = 0; i < 8; ++i) {
    const int low = stored[4 + i / 2] >> (4 * (i % 2)) & 15, high = stored[2 + i / 4] >> (2 * (i % 4)) & 3;
    block.scales[i] = static_cast<uint8_t>((low | high << 4) - 32);
  }
  split<16, 4>(stored + 8, 128, block.codes);
}

using ReadBlock = void (*)(const uint8_t*, Block&);

constexpr ReadBlock reader_of(Format format) {
  switch (format) {
    case Format::kQ4_0:
    case Format::kIQ4_NL:
      return read_four_bits<2>;
    case Format::kQ4_1:
      return read_four_bits<4>;
    case Format::kQ5_0:
      return read_five_bits<2>;
    case Format::kQ5_1:
      return read_five_bits<4>;
    case Format::kQ8_0:
      return read_q8_0;
    case Format::kQ2_K:
      return read_q2_k;
    case Format::kQ3_K:
      return read_q3_k;
    case Format::kQ4_K:
      return read_q4_k;
    case Format::kQ5_K:
      return read_q5_k;
    case Format::kQ6_K:
      return read_q6_k;
    case Format::kIQ4_XS:
      return read_iq4_xs;
    default:
      return nullptr;
  }
}

// Writers of 32 codes in order of input, as one row of a tile (q4, q2, h2 and h1 of packed_weight.h).

// Never inlined: next to a reader of 32 codes gcc 12 turns the loop into scalar code of a third of the speed.
[[gnu::noinline]] void put_nibbles(const uint8_t* codes, uint8_t* out) {
  for (int j = 0; j < 8; ++j) {
    out[2 * j] = static_cast<uint8_t>((codes[j] & 15) | codes[8 + j] << 4);
    out[2 * j + 1] = static_cast<uint8_t>((codes[16 + j] & 15) | codes[24 + j] << 4);
  }
}

void put_pairs(const uint8_t* codes, uint8_t* out) {
  const auto byte = [](const uint8_t* c) {
    return static_cast<uint8_t>((c[0] & 3) | (c[4] & 3) << 2 | (c[8] & 3) << 4 | c[12] << 6);
  };
  for (int j = 0; j < 4; ++j) {
    out[2 * j] = byte(codes + j);
    out[2 * j + 1] = byte(codes + 16 + j);
  }
}

void put_high_pairs(const uint8_t* codes, uint8_t* out) {
  for (int j = 0; j < 8; ++j)
    out[j] = static_cast<uint8_t>(codes[j] >> 4 | codes[8 + j] >> 4 << 2 | codes[16 + j] >> 4 << 4 |
                                  codes[24 + j] >> 4 << 6);
}

// Bit `place` of every code; a multiplication gathers those of eight codes in the top byte.
void put_high_bits(const uint8_t* codes, int place, uint8_t* out) {
  for (int i = 0; i < 4; ++i) {
    uint64_t eight;
    std::memcpy(&eight, codes + 8 * i, 8);
    out[i] = static_cast<uint8_t>((eight >> place & 0x0101010101010101) * 0x0102040810204080 >> 56);
  }
}

// Four bits at index `i` of a row of nibbles, which is zero before.
void put_nibble(uint8_t* row, int64_t i, int value) {
  row[2 * (i % 8) + i / 16] |= static_cast<uint8_t>(value << (i / 8 % 2 * 4));
}

template <Format F>
void put_scales(const Block& block, int t, int64_t n, uint8_t* tile) {
  constexpr FormatInfo info = format_info(F);
  for (int half = 0; half < info.num_scales(); ++half) {
    const int i = t * info.num_scales() + half;
    if constexpr (info.scales == ScaleFields::kNibblePairMinimum) {
      put_nibble(tile, 16 * half + n, block.scales[i]);
      put_nibble(tile + 16, 16 * half + n, block.minimums[i]);
    } else {
      tile[16 * half + n] = block.scales[i];
      if constexpr (info.scales == ScaleFields::kByteMinimum) tile[16 + n] = block.minimums[i];
    }
  }
}

template <Format F>
void put_codes(const uint8_t* codes, int64_t n, uint8_t* tile) {
  constexpr FormatInfo info = format_info(F);
  uint8_t* out = tile + info.codes_at(n);
  uint8_t* high = tile + info.high_at(n);
  if constexpr (info.codes == CodeFields::kBytes)
    std::memcpy(out, codes, 32);
  else if constexpr (info.code_bytes() == 8)
    put_pairs(codes, out);
  else
    put_nibbles(codes, out);
  if constexpr (info.codes == CodeFields::kThreeBits) put_high_bits(codes, 2, high);
  if constexpr (info.codes == CodeFields::kFiveBits) put_high_bits(codes, 4, high);
  if constexpr (info.codes == CodeFields::kSixBits) put_high_pairs(codes, high);
}

// Row n of a super-block.
template <Format F>
void pack_block(const uint8_t* stored, int64_t n, uint8_t* super) {
  constexpr FormatInfo info = format_info(F);
  Block block;
  reader_of(F)(stored, block);
  std::memcpy(super + 2 * n, stored + info.stored_d, 2);
  if constexpr (info.has_minimum()) std::memcpy(super + 32 + 2 * n, stored + info.stored_d + 2, 2);
  for (int t = 0; t < info.tiles_per_super; ++t) {
    uint8_t* tile = super + info.header_bytes + t * info.tile_bytes;
    if constexpr (info.header_bytes > 0) put_scales<F>(block, t, n, tile);
    put_codes<F>(block.codes + t * kTileInputs, n, tile);
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

template <Format F>
void pack_row(const uint8_t* row, int64_t num_inputs, int64_t n, uint8_t* panel) {
  constexpr FormatInfo info = format_info(F);
  if constexpr (info.is_plain()) {
    pack_plain_row(row, num_inputs, info.block_bytes, n, panel);
  } else {
    for (int64_t b = 0; b < num_inputs / info.block_elements; ++b)
      pack_block<F>(row + b * info.block_bytes, n, panel + b * info.super_bytes());
  }
}

constexpr auto kPackRow = format_table([]<Format F>() { return pack_row<F>; });

}  // namespace

Format format_by_name(const char* name) {
  for (int i = 0; i < static_cast<int>(Format::kCount); ++i)
    if (std::strcmp(format_name(static_cast<Format>(i)), name) == 0) return static_cast<Format>(i);
  return Format::kCount;
}

const char* format_name(Format format) {
  if (is_channel(format)) return format == Format::kINT8 ? "INT8" : "INT4";
  return format_info(format).name;
}

int64_t PackedWeight::panel_bytes() const {
  if (is_channel(format)) return ChannelPanel{format, num_tiles()}.num_bytes();
  const FormatInfo& info = format_info(format);
  return num_tiles() / info.tiles_per_super * info.super_bytes();
}

int64_t packed_bytes(Format format, int64_t num_outputs, int64_t num_inputs) {
  const PackedWeight weight{format, num_outputs, num_inputs, nullptr};
  return weight.num_panels() * weight.panel_bytes();
}

void pack_weight(Format format, int64_t num_outputs, int64_t num_inputs, const uint8_t* stored, uint8_t* packed) {
  const FormatInfo& info = format_info(format);
  const PackedWeight weight{format, num_outputs, num_inputs, packed};
  const int64_t row_bytes = num_inputs / info.block_elements * info.block_bytes;
  std::memset(packed, 0, static_cast<size_t>(packed_bytes(format, num_outputs, num_inputs)));
  for (int64_t row = 0; row < num_outputs; ++row) {
    uint8_t* panel = packed + row / kPanelOutputs * weight.panel_bytes();
    kPackRow[format](stored + row * row_bytes, num_inputs, row % kPanelOutputs, panel);
  }
}

}  // namespace subsecond
