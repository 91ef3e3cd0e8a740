#include "packed_weight.h"

#include <cstring>

#include "channel_weight.h"
#include "sparse_weight.h"

namespace subsecond {
namespace {

// The codes of 32 inputs in their order, one a byte; eight bytes are handled at once. Shifts go across bytes, so a mask
// follows each.
struct Codes {
  uint64_t eights[4];
};

constexpr uint64_t in_each_byte(uint64_t value) { return value * 0x0101010101010101; }

inline uint64_t load_eight(const uint8_t* bytes) {
  uint64_t value;
  std::memcpy(&value, bytes, 8);
  return value;
}

inline void store_eight(uint8_t* bytes, uint64_t value) { std::memcpy(bytes, &value, 8); }

// Fields of `bits` bits, from bit `shift` of each of 32 bytes on, placed at bit `place`.
template <int bits, int place = 0>
inline void add_fields(const uint8_t* bytes, int shift, Codes& codes) {
  for (int i = 0; i < 4; ++i)
    codes.eights[i] |= (load_eight(bytes + 8 * i) >> shift & in_each_byte((1 << bits) - 1)) << place;
}

// Sixteen bytes: low nibbles, then high ones.
inline void add_nibbles(const uint8_t* bytes, Codes& codes) {
  for (int i = 0; i < 4; ++i) codes.eights[i] |= load_eight(bytes + i % 2 * 8) >> (i / 2 * 4) & in_each_byte(15);
}

// The bits of four bytes, lowest first, at bit 4 of 32 codes.
inline void add_fifth_bits(const uint8_t* bytes, Codes& codes) {
  for (int i = 0; i < 4; ++i) {
    const uint64_t single = in_each_byte(bytes[i]) & 0x8040201008040201;  // one bit of its own in each byte
    codes.eights[i] |= (single + in_each_byte(0x7f)) >> 3 & in_each_byte(16);
  }
}

// Codes of inputs [32 t, 32 t + 32) of a stored block (ggml-common.h).
template <Format F>
inline Codes read_codes(const uint8_t* stored, int t) {
  Codes codes{};
  if constexpr (F == Format::kQ4_0 || F == Format::kIQ4_NL) {
    add_nibbles(stored + 2, codes);
  } else if constexpr (F == Format::kQ4_1) {
    add_nibbles(stored + 4, codes);
  } else if constexpr (F == Format::kQ5_0 || F == Format::kQ5_1) {
    constexpr int start = F == Format::kQ5_0 ? 2 : 4;
    add_nibbles(stored + start + 4, codes);
    add_fifth_bits(stored + start, codes);
  } else if constexpr (F == Format::kQ8_0) {
    add_fields<8>(stored + 2, 0, codes);
  } else if constexpr (F == Format::kQ2_K) {
    add_fields<2>(stored + 16 + t / 4 * 32, t % 4 * 2, codes);
  } else if constexpr (F == Format::kQ3_K) {
    add_fields<2>(stored + 32 + t / 4 * 32, t % 4 * 2, codes);
    add_fields<1, 2>(stored, t, codes);
  } else if constexpr (F == Format::kQ4_K) {
    add_fields<4>(stored + 16 + t / 2 * 32, t % 2 * 4, codes);
  } else if constexpr (F == Format::kQ5_K) {
    add_fields<4>(stored + 48 + t / 2 * 32, t % 2 * 4, codes);
    add_fields<1, 4>(stored + 16, t, codes);
  } else if constexpr (F == Format::kQ6_K) {
    add_fields<4>(stored + t / 4 * 64 + t % 2 * 32, t / 2 % 2 * 4, codes);
    add_fields<2, 4>(stored + 128 + t / 4 * 32, t % 4 * 2, codes);
  } else {
    static_assert(F == Format::kIQ4_XS);
    add_nibbles(stored + 8 + t * 16, codes);
  }
  return codes;
}

// Scales and minimums of a stored super-block, in order of the inputs that they serve.
struct Scales {
  uint8_t scales[16];
  uint8_t minimums[16];
};

// Twelve bytes: eight scales and eight minimums of six bits each (ggml-quants.c, get_scale_min_k4).
inline void read_six_bit_scales(const uint8_t* packed, Scales& out) {
  for (int j = 0; j < 4; ++j) {
    out.scales[j] = packed[j] & 63;
    out.minimums[j] = packed[j + 4] & 63;
    out.scales[j + 4] = static_cast<uint8_t>((packed[j + 8] & 15) | (packed[j] >> 6) << 4);
    out.minimums[j + 4] = static_cast<uint8_t>((packed[j + 8] >> 4) | (packed[j + 4] >> 6) << 4);
  }
}

template <Format F>
inline Scales read_scales(const uint8_t* stored) {
  Scales out;
  if constexpr (F == Format::kQ2_K) {
    for (int i = 0; i < 16; ++i) {
      out.scales[i] = stored[i] & 15;
      out.minimums[i] = stored[i] >> 4;
    }
  } else if constexpr (F == Format::kQ3_K) {  // six bits, less 32: sixteen low nibbles, then sixteen pairs
    for (int i = 0; i < 16; ++i) {
      const int low = stored[96 + i % 8] >> (i / 8 * 4) & 15, high = stored[104 + i % 4] >> (i / 4 * 2) & 3;
      out.scales[i] = static_cast<uint8_t>((low | high << 4) - 32);
    }
  } else if constexpr (F == Format::kQ6_K) {
    std::memcpy(out.scales, stored + 192, 16);
  } else if constexpr (F == Format::kIQ4_XS) {  // six bits, less 32: a word of pairs, then nibbles
    for (int i = 0; i < 8; ++i) {
      const int low = stored[4 + i / 2] >> (4 * (i % 2)) & 15, high = stored[2 + i / 4] >> (2 * (i % 4)) & 3;
      out.scales[i] = static_cast<uint8_t>((low | high << 4) - 32);
    }
  } else {
    read_six_bit_scales(stored + 4, out);
  }
  return out;
}

// Writers of one row of a tile (q4, q2, h2 and h1 of packed_weight.h).

using Bytes16 = uint8_t __attribute__((vector_size(16)));
using Eights = uint64_t __attribute__((vector_size(16)));

// Bytes of two words in turn, the first one's first.
inline Bytes16 in_turn(uint64_t even, uint64_t odd) {
  const auto a = reinterpret_cast<Bytes16>(Eights{even, 0}), b = reinterpret_cast<Bytes16>(Eights{odd, 0});
#ifdef __clang__
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#else
  return __builtin_shuffle(a, b, Bytes16{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
#endif
}

inline void put_nibbles(const Codes& codes, uint8_t* out) {
  const auto& c = codes.eights;
  constexpr uint64_t mask = in_each_byte(15);
  const Bytes16 row = in_turn((c[0] & mask) | (c[1] & mask) << 4, (c[2] & mask) | (c[3] & mask) << 4);
  std::memcpy(out, &row, 16);
}

inline void put_pairs(const Codes& codes, uint8_t* out) {
  uint64_t halves[2];
  for (int i = 0; i < 2; ++i) {
    const uint64_t a = codes.eights[2 * i] & in_each_byte(3), b = codes.eights[2 * i + 1] & in_each_byte(3);
    halves[i] = a | a >> 30 | b << 4 | b >> 26;  // the upper four codes two bits above the lower
  }
  const Bytes16 row = in_turn(halves[0], halves[1]);
  std::memcpy(out, &row, 8);
}

inline void put_high_pairs(const Codes& codes, uint8_t* out) {
  constexpr uint64_t mask = in_each_byte(3);
  const auto& c = codes.eights;
  store_eight(out, (c[0] >> 4 & mask) | (c[1] >> 4 & mask) << 2 | (c[2] >> 4 & mask) << 4 | (c[3] >> 4 & mask) << 6);
}

// Bit `place` of every code; a multiplication gathers those of eight codes in the top byte.
inline void put_high_bits(const Codes& codes, int place, uint8_t* out) {
  for (int i = 0; i < 4; ++i)
    out[i] = static_cast<uint8_t>((codes.eights[i] >> place & in_each_byte(1)) * 0x0102040810204080 >> 56);
}

// Four bits at index `i` of a row of nibbles, which is zero before.
void put_nibble(uint8_t* row, int64_t i, int value) {
  row[2 * (i % 8) + i / 16] |= static_cast<uint8_t>(value << (i / 8 % 2 * 4));
}

template <Format F>
void put_scales(const Scales& stored, int t, int64_t n, uint8_t* tile) {
  constexpr FormatInfo info = format_info(F);
  for (int half = 0; half < info.num_scales(); ++half) {
    const int i = t * info.num_scales() + half;
    if constexpr (info.scales == ScaleFields::kNibblePairMinimum) {
      put_nibble(tile, 16 * half + n, stored.scales[i]);
      put_nibble(tile + 16, 16 * half + n, stored.minimums[i]);
    } else {
      tile[16 * half + n] = stored.scales[i];
      if constexpr (info.scales == ScaleFields::kByteMinimum) tile[16 + n] = stored.minimums[i];
    }
  }
}

template <Format F>
void put_codes(const Codes& codes, int64_t n, uint8_t* tile) {
  constexpr FormatInfo info = format_info(F);
  uint8_t* out = tile + info.codes_at(n);
  uint8_t* high = tile + info.high_at(n);
  if constexpr (info.codes == CodeFields::kBytes)
    std::memcpy(out, codes.eights, 32);
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
  std::memcpy(super + 2 * n, stored + info.stored_d, 2);
  if constexpr (info.has_minimum()) std::memcpy(super + 32 + 2 * n, stored + info.stored_d + 2, 2);
  if constexpr (info.header_bytes > 0) {
    const Scales scales = read_scales<F>(stored);
    for (int t = 0; t < info.tiles_per_super; ++t)
      put_scales<F>(scales, t, n, super + info.header_bytes + t * info.tile_bytes);
  }
#pragma GCC unroll 8
  for (int t = 0; t < info.tiles_per_super; ++t)
    put_codes<F>(read_codes<F>(stored, t), n, super + info.header_bytes + t * info.tile_bytes);
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
  constexpr const char* others[] = {"INT8", "INT4", "NESTED8", "NESTED4", "F16_SPARSE", "F16_LIST"};
  static_assert(kNumFormats + sizeof(others) / sizeof(others[0]) == static_cast<size_t>(Format::kCount));
  const auto index = static_cast<size_t>(format);
  return index < kNumFormats ? kFormats[index].name : others[index - kNumFormats];
}

int64_t PackedWeight::panel_bytes() const {
  if (is_channel(format)) return ChannelPanel{format, num_tiles()}.num_bytes();
  const FormatInfo& info = format_info(format);
  return num_tiles() / info.tiles_per_super * info.super_bytes();
}

const uint8_t* PackedWeight::panel(int64_t index) const {
  return data + (has_offsets(format) ? static_cast<int64_t>(offset_at(data, index)) : index * panel_bytes());
}

int64_t packed_bytes(Format format, int64_t num_outputs, int64_t num_inputs) {
  const PackedWeight weight{format, num_outputs, num_inputs, nullptr};
  const ChannelPanel panel{format, weight.num_tiles()};
  return weight.num_panels() * (weight.panel_bytes() + (is_nested(format) ? panel.residual_bytes() : 0));
}

void pack_weight(Format format, int64_t num_outputs, int64_t num_inputs, const uint8_t* stored, uint8_t* packed) {
  const FormatInfo& info = format_info(format);
  const PackedWeight weight{format, num_outputs, num_inputs, packed};
  const int64_t row_bytes = num_inputs / info.block_elements * info.block_bytes;
  for (int64_t row = 0; row < num_outputs; ++row) {
    uint8_t* panel = packed + row / kPanelOutputs * weight.panel_bytes();
    if (row % kPanelOutputs == 0) std::memset(panel, 0, static_cast<size_t>(weight.panel_bytes()));
    kPackRow[format](stored + row * row_bytes, num_inputs, row % kPanelOutputs, panel);
  }
}

}  // namespace subsecond
