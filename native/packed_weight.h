// Layout of packed weights: the stored blocks of a file, reordered so that one sequential read feeds sixteen outputs.
//
// A weight of N outputs and K inputs is cut into panels of 16 outputs and tiles of 32 inputs:
//
//   panel 0: [super][super]...   panel 1: ...        super = header + tiles_per_super tiles
//
// A tile holds, for its 16 outputs n and 32 inputs k (d, m: fp16[16]; q: codes; h: high bits of codes):
//
//   Q4_0    d              q4         w = d (q - 8)
//   Q4_1    d m            q4         w = d q + m
//   Q5_0    d        h1    q4         w = d (q + 16 h - 16)
//   Q5_1    d m      h1    q4         w = d (q + 16 h) + m
//   Q8_0    d              q[16][32]  w = d q, q: int8
//   Q2_K    s4 t4          q2         w = d s q - m t, header: d m; s4, t4: s and t of (k/16, n) as one q4 row each
//   Q3_K    s[2][16] h1    q2         w = d s[k/16] (q + 4 h - 4), header: d; s: int8
//   Q4_K    s[16] t[16]    q4         w = d s q - m t, header: d m; s, t: uint8
//   Q5_K    s[16] t[16] h1 q4         w = d s (q + 16 h) - m t, header: d m; s, t: uint8
//   Q6_K    s[2][16] h2    q4         w = d s[k/16] (q + 16 h - 32), header: d and 32 unused bytes; s: int8
//   IQ4_NL  d              q4         w = d v[q], v: kNonlinearValues
//   IQ4_XS  s[16]          q4         w = d s v[q], header: d; s: int8
//   F16, BF16, F32         w[16][32]
//
// A header serves 8 tiles. One row of codes or high bits an output, in little-endian words of 16 bits:
//
//   q4  8 words: input k = 8 l + j is bits [4 l, 4 l + 4) of word j, so that one broadcast and one variable shift bring
//       all 32 into order
//   q2  4 words: input k = 4 l + j is bits [2 l, 2 l + 2) of word j
//   h2  8 bytes: input k = 8 l + j is bits [2 l, 2 l + 2) of byte j
//   h1  4 bytes: input k is bit k of a little-endian uint32
//
// Channel formats are not stored blocks but made from float32 weights: one float32 scale an output, integer codes over
// all of K, in the operand order of byte products (four inputs of sixteen outputs a vector). A panel holds, for T
// tiles:
//
//   INT8    scale[16]                            q[T][8][16][4]    w = scale (q - 128), q: uint8, 1 to 255
//   INT4    scale[16] mq[T][8], zeros to 64      q4[T][4][16][4]   w = scale m (q - 8), m: 1 to 16
//
// Nested formats are one weight with two readings. The panels of INT4 come first, then for each of them a residual
//
//                                                r4[T][4][16][4]   in the order of q4
//
//   NESTED4 w = scale m (q - 8), as INT4 and with its reads
//   NESTED8 w = scale (m (q - 8) + r - 7), whole numbers of eight bits: -128 to 120
//
// A byte of mq holds m - 1 of output n in its low and of output n + 8 in its high bits; a byte of q4[v] is an input of
// group v in its low and of group v + 4 in its high bits. Codes begin at a multiple of 64 bytes.
//
// F16_SPARSE and F16_LIST are F16 without its zeros; their layouts are in sparse_weight.h and list_weight.h.
//
// N is padded to 16 and K to 32 with zero weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace subsecond {

constexpr int64_t kPanelOutputs = 16;
constexpr int64_t kTileInputs = 32;

enum class Format : int32_t {
  kF32,
  kF16,
  kBF16,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_NL,
  kIQ4_XS,
  kNumStored,  // formats from here on are channel formats
  kINT8 = kNumStored,
  kINT4,
  kNESTED8,
  kNESTED4,
  kF16_SPARSE,  // these two are read as stored formats are
  kF16_LIST,
  kCount
};

// Whether panels differ in size, and offsets stand before them.
constexpr bool has_offsets(Format format) { return format >= Format::kF16_SPARSE; }

constexpr bool is_channel(Format format) { return format >= Format::kNumStored && format < Format::kF16_SPARSE; }
constexpr bool is_nested(Format format) { return format == Format::kNESTED8 || format == Format::kNESTED4; }

// What an IQ4 code stands for (ggml-common.h, kvalues_iq4nl).
inline constexpr int8_t kNonlinearValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                1,    13,   25,  38,  53,  69,  89,  113};

// Where the scales of a tile stand. d and m of a super-block are in its header, otherwise in the tile.
enum class ScaleFields : int32_t {
  kNone,               // the codes are the weights
  kHalf,               // d
  kHalfMinimum,        // d m
  kByte,               // s[16]
  kBytePair,           // s[2][16]
  kByteMinimum,        // s[16] t[16]
  kNibblePairMinimum,  // s4 t4
};

enum class CodeFields : int32_t {
  kF32,
  kF16,
  kBF16,
  kTwoBits,    // q2
  kThreeBits,  // h1 q2
  kFourBits,   // q4
  kFiveBits,   // h1 q4
  kSixBits,    // h2 q4
  kBytes,      // q[16][32]
  kNonlinear,  // q4, looked up in kNonlinearValues
};

struct FormatInfo {
  const char* name;        // as in GGUF
  int64_t block_elements;  // of the stored block
  int64_t block_bytes;     // of the stored block
  int64_t stored_d;        // where the stored block has d; m, if any, follows
  int64_t tiles_per_super;
  int64_t header_bytes;  // of a packed super
  int64_t tile_bytes;    // of a packed tile
  ScaleFields scales;
  CodeFields codes;
  int bias;  // subtracted from every code

  constexpr bool is_plain() const { return scales == ScaleFields::kNone; }
  constexpr bool has_minimum() const {
    return scales == ScaleFields::kHalfMinimum || scales == ScaleFields::kByteMinimum ||
           scales == ScaleFields::kNibblePairMinimum;
  }
  // Scales of a row of a tile: two where inputs 0..15 and 16..31 have their own.
  constexpr int num_scales() const {
    return scales == ScaleFields::kBytePair || scales == ScaleFields::kNibblePairMinimum ? 2 : 1;
  }
  constexpr int64_t super_bytes() const { return header_bytes + tiles_per_super * tile_bytes; }
  // Bytes of one output's codes in a tile, and of its high bits.
  constexpr int64_t code_bytes() const {
    if (is_plain()) return kTileInputs * block_bytes;
    if (codes == CodeFields::kBytes) return 32;
    return codes == CodeFields::kTwoBits || codes == CodeFields::kThreeBits ? 8 : 16;
  }
  constexpr int64_t high_bytes() const {
    if (codes == CodeFields::kSixBits) return 8;
    return codes == CodeFields::kThreeBits || codes == CodeFields::kFiveBits ? 4 : 0;
  }
  // Where in a tile the codes and the high bits of output n begin.
  constexpr int64_t codes_at(int64_t n) const { return tile_bytes - (kPanelOutputs - n) * code_bytes(); }
  constexpr int64_t high_at(int64_t n) const { return codes_at(0) - (kPanelOutputs - n) * high_bytes(); }
};

// Stored formats, in the order of Format. Kernels read it at compile time; format_info serves the rest.
inline constexpr FormatInfo kFormats[] = {
    {"F32", 1, 4, 0, 1, 0, 2048, ScaleFields::kNone, CodeFields::kF32, 0},
    {"F16", 1, 2, 0, 1, 0, 1024, ScaleFields::kNone, CodeFields::kF16, 0},
    {"BF16", 1, 2, 0, 1, 0, 1024, ScaleFields::kNone, CodeFields::kBF16, 0},
    {"Q4_0", 32, 18, 0, 1, 0, 288, ScaleFields::kHalf, CodeFields::kFourBits, 8},
    {"Q4_1", 32, 20, 0, 1, 0, 320, ScaleFields::kHalfMinimum, CodeFields::kFourBits, 0},
    {"Q5_0", 32, 22, 0, 1, 0, 352, ScaleFields::kHalf, CodeFields::kFiveBits, 16},
    {"Q5_1", 32, 24, 0, 1, 0, 384, ScaleFields::kHalfMinimum, CodeFields::kFiveBits, 0},
    {"Q8_0", 32, 34, 0, 1, 0, 544, ScaleFields::kHalf, CodeFields::kBytes, 0},
    {"Q2_K", 256, 84, 80, 8, 64, 160, ScaleFields::kNibblePairMinimum, CodeFields::kTwoBits, 0},
    {"Q3_K", 256, 110, 108, 8, 32, 224, ScaleFields::kBytePair, CodeFields::kThreeBits, 4},
    {"Q4_K", 256, 144, 0, 8, 64, 288, ScaleFields::kByteMinimum, CodeFields::kFourBits, 0},
    {"Q5_K", 256, 176, 0, 8, 64, 352, ScaleFields::kByteMinimum, CodeFields::kFiveBits, 0},
    {"Q6_K", 256, 210, 208, 8, 64, 416, ScaleFields::kBytePair, CodeFields::kSixBits, 32},
    {"IQ4_NL", 32, 18, 0, 1, 0, 288, ScaleFields::kHalf, CodeFields::kNonlinear, 0},
    {"IQ4_XS", 256, 136, 0, 8, 32, 272, ScaleFields::kByte, CodeFields::kNonlinear, 0},
};
constexpr size_t kNumFormats = static_cast<size_t>(Format::kNumStored);
static_assert(sizeof(kFormats) / sizeof(kFormats[0]) == kNumFormats);

constexpr const FormatInfo& format_info(Format format) { return kFormats[static_cast<size_t>(format)]; }

// One entry for every stored format.
template <class Entry>
struct FormatTable {
  Entry entries[kNumFormats];
  constexpr const Entry& operator[](Format format) const { return entries[static_cast<size_t>(format)]; }
};

// The table of make.operator()<F>() for every format F.
template <class Make>
constexpr auto format_table(Make make) {
  return [&]<size_t... I>(std::index_sequence<I...>) {
    using Entry = decltype(make.template operator()<Format::kF32>());
    return FormatTable<Entry>{{make.template operator()<static_cast<Format>(I)>()...}};
  }(std::make_index_sequence<kNumFormats>());
}

// The format of that name, GGUF's for stored formats; kCount where there is none.
Format format_by_name(const char* name);
const char* format_name(Format format);

struct PackedWeight {
  Format format;
  int64_t num_outputs;  // N
  int64_t num_inputs;   // K
  const uint8_t* data;

  int64_t num_panels() const { return (num_outputs + kPanelOutputs - 1) / kPanelOutputs; }
  int64_t num_tiles() const { return (num_inputs + kTileInputs - 1) / kTileInputs; }
  // Not of formats with offsets; of nested formats without the residual.
  int64_t panel_bytes() const;
  const uint8_t* panel(int64_t index) const;
};

// Bytes of a packed weight, padding included; not of formats with offsets.
int64_t packed_bytes(Format format, int64_t num_outputs, int64_t num_inputs);

// Reorder the rows of a stored tensor (num_outputs rows of stored blocks) into `packed`, which is written in full.
void pack_weight(Format format, int64_t num_outputs, int64_t num_inputs, const uint8_t* stored, uint8_t* packed);

}  // namespace subsecond
