// The contract between the executor and the kernels of one instruction set: plain structs and function pointers.
//
// Two arithmetics. "i16": activations are rounded to 16 bits in blocks of 32, the products of codes are summed exactly
// and scaled in float32; scalar, AVX2 and AVX-512 with and without VNNI give the same bits. "bf16": weights and
// activations are rounded to bfloat16, products are exact and sums float32 (AMX). Weights of channel formats have a
// third, the same on every instruction set: activations are rounded to 8 bits with one scale a row, products of codes
// are summed exactly. In all of them, a row of a result depends on nothing but that row's inputs, never on the number
// of rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "channel_weight.h"
#include "list_weight.h"
#include "packed_weight.h"
#include "rotation.h"
#include "sparse_weight.h"

namespace subsecond {

constexpr int64_t kBlockTokens = 32;   // positions in a key/value block
constexpr int64_t kPartTokens = 256;   // positions in a part of attention
constexpr int64_t kGroupRows = 16;     // rows that pack_rows handles at once
constexpr int kMaxKvTypes = 3;         // of one instruction set
constexpr int64_t kLogitsBlock = 256;  // logits that block_maxima gives one value of

// A float32 matrix whose rows are `stride` floats apart.
struct Matrix {
  float* data = nullptr;
  int64_t stride = 0;
  float* row(int64_t r) const { return data + r * stride; }
};

struct PackArgs {
  Matrix input;
  int64_t num_rows;
  int64_t width;
  const float* norm_weight;  // null: no norm
  float norm_eps;
  uint8_t* packed;  // activation_bytes(num_rows, width), see LinearKernels
};

enum class Activation : int { kSilu, kGelu, kGeluTanh, kCount };  // see graph/ops.py

struct LinearArgs {
  const uint8_t* packed;  // activations from pack_rows
  int64_t num_rows;
  const PackedWeight* weights;
  const float* const* biases;  // one a weight, null entries for none
  int num_weights;
  bool is_gated;  // weights are gate and up of equal shape; output = activation(gate) * up
  Activation activation;
  Matrix residual;  // data null: none
  Matrix output;
};

// A norm of every `group_width` channels of a row; weight and bias have that width.
struct NormArgs {
  const float* weight;
  const float* bias;  // null: none
  float eps;
  bool is_layer;  // less the mean, divided by the deviation; otherwise divided by the root of the mean square
  int64_t group_width;
};

struct RotaryArgs {
  const float* cos_sin;  // [positions][dims], cos of pair i at 2 i and sin at 2 i + 1, times the magnitude
  int64_t dims;          // 0: no rotation
  bool is_interleaved;   // channels of pair i: 2 i, 2 i + 1; otherwise i, i + dims / 2
};

// Keys and values of one layer: block b, head h at data + (b * num_kv_heads + h) * head_bytes.
struct LayerCache {
  uint8_t* data;
  int64_t head_bytes;
};

// The rows of one sequence in the step, [row_start, row_end), at consecutive positions from `position`.
struct Span {
  int64_t row_start;
  int64_t row_end;
  int64_t position;
  const int32_t* blocks;
};

struct AttentionArgs {
  Matrix query, key, value, output;
  LayerCache cache;
  RotaryArgs rotary;
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  float scale;
  int64_t window;  // a row sees that many positions up to its own; 0: all of them
  float softcap;   // scores become softcap * tanh(score / softcap); 0: they stay
  bool is_causal;  // otherwise a row sees every position of its span, which then is the whole sequence
};

// Positions [begin, end) that a row sees.
struct Visible {
  int64_t begin;
  int64_t end;
};

inline Visible visible_to(const AttentionArgs& args, const Span& span, int64_t position) {
  if (!args.is_causal) return {0, span.position + (span.row_end - span.row_start)};
  return {args.window && position + 1 > args.window ? position + 1 - args.window : 0, position + 1};
}

// The kernels of a linear. Row groups [begin, end) of kGroupRows rows each are normalized (optional) and packed, then
// units of work [begin, end) are multiplied (see unit_panels); every thread has scratch memory of its own.
struct LinearKernels {
  int64_t (*activation_bytes)(int64_t num_rows, int64_t width);
  void (*pack_rows)(const PackArgs&, int64_t begin, int64_t end, uint8_t* scratch);
  void (*linear)(const LinearArgs&, int64_t begin, int64_t end, uint8_t* scratch);
};

// Attention over keys and values of one type.
struct AttentionKernels {
  const char* kv_type;
  int64_t (*head_bytes)(int64_t head_dim);

  // Rotate and store the keys and values of rows [begin, end) of a span, all in one block, for one head. Rows at
  // earlier positions of the block have been stored.
  void (*store_kv)(const AttentionArgs&, const Span&, int64_t begin, int64_t end, int64_t kv_head, uint8_t* scratch);
  // Attend for rows [begin, end) of a span (at most attend_rows of them) and the query heads of one key/value head.
  void (*attend)(const AttentionArgs&, const Span&, int64_t begin, int64_t end, int64_t kv_head, uint8_t* scratch);
  int64_t (*attend_rows)(int64_t heads_per_kv_head);
  // The same in two steps, for threads that share the positions of few rows; null where a set has no such steps.
  // `attend_part` sees positions [part * kPartTokens, (part + 1) * kPartTokens) and fills `result`, part_floats for
  // every row and head; what no row sees may stay as it is. `merge_parts` takes the results of all parts, `part_stride`
  // floats apart, and gives the bits of `attend`.
  void (*attend_part)(const AttentionArgs&, const Span&, int64_t begin, int64_t end, int64_t kv_head, int64_t part,
                      float* result, uint8_t* scratch);
  void (*merge_parts)(const AttentionArgs&, const Span&, int64_t begin, int64_t end, int64_t kv_head,
                      const float* parts, int64_t part_stride, uint8_t* scratch);
  int64_t (*part_floats)(int64_t head_dim);
};

struct Kernels {
  const char* isa;
  const char* arithmetic;

  LinearKernels stored;
  LinearKernels channel;  // for weights of channel formats
  const LinearKernels& linear_of(Format format) const { return is_channel(format) ? channel : stored; }

  // Bytes of the scratch memory that each thread needs, for linears of up to so many inputs and any attention.
  int64_t (*scratch_bytes)(int64_t max_inputs, int64_t head_dim);
  // One for every type of keys and values, the default first; without a name after the last. See find_attention.
  AttentionKernels attention[kMaxKvTypes];

  // Element-wise operators on rows [begin, end).
  void (*normalize)(Matrix input, Matrix output, int64_t width, const NormArgs&, int64_t begin, int64_t end);
  void (*rope)(Matrix input, Matrix output, const RotaryArgs&, int64_t head_dim, int64_t num_heads,
               const int32_t* positions, int64_t begin, int64_t end);
  void (*gated_activation)(Matrix gate, Matrix up, Matrix output, int64_t width, Activation, int64_t begin,
                           int64_t end);
  void (*activate)(Matrix input, Matrix output, int64_t width, Activation, int64_t begin, int64_t end);
  void (*add)(Matrix left, Matrix right, Matrix output, int64_t width, int64_t begin, int64_t end);
  void (*scale)(Matrix input, Matrix output, int64_t width, float factor, int64_t begin, int64_t end);
  void (*softcap)(Matrix input, Matrix output, int64_t width, float cap, int64_t begin, int64_t end);
  // exp(x - max) / sum of one row.
  void (*softmax)(const float* input, float* output, int64_t width);
  // output += input * factor, of one row.
  void (*add_scaled)(const float* input, float* output, int64_t width, float factor);
  // The rotation of rotation.h, of one row in place.
  void (*rotate)(float* row, int64_t width);
  // Row `index` of a weight of a stored format as float32[num_inputs].
  void (*unpack_row)(const PackedWeight&, int64_t index, float* output);

  // Reductions over a row of logits; NaN counts as -inf. The largest of every kLogitsBlock of them:
  void (*block_maxima)(const float* logits, int64_t width, float* maxima);
  // The sum of e^((logit - peak) * scale), peak being the largest.
  double (*sum_exp)(const float* logits, int64_t width, float peak, float scale);
};

// A unit of work in a linear: up to four panels. Of a gated linear, the last two are the up projection's partners of
// the first two.
struct UnitPanels {
  int weight = 0;      // of panels[0]; the partners belong to weight 1
  int num_panels = 0;  // 1 to 4; with a partner each when gated: 1 or 2
  int64_t panels[4] = {};
  int64_t column_offset = 0;  // of the weight's first output
};

inline int64_t units_of(const PackedWeight& weight, int num_streams) {
  return (weight.num_panels() + num_streams - 1) / num_streams;
}

// Units of work in a linear.
inline int64_t linear_units(const LinearArgs& args) {
  if (args.is_gated) return units_of(args.weights[0], 2);
  int64_t units = 0;
  for (int i = 0; i < args.num_weights; ++i) units += units_of(args.weights[i], 4);
  return units;
}

// How the panels of a unit lie. kStreams: apart, to be read as parallel streams, each going on where the unit before
// stopped (17 against 10 GB/s a thread on 2 vCPUs of a Sapphire Rapids, 2026-11-22). kAdjacent: side by side, to be
// read one after the other (38 against 20 GB/s a thread on a Zen 5, 2026-11-27).
enum class PanelOrder { kStreams, kAdjacent };

inline UnitPanels unit_panels(const LinearArgs& args, int64_t unit, PanelOrder order) {
  UnitPanels result;
  const int num_streams = args.is_gated ? 2 : 4;
  int64_t num_units = units_of(args.weights[0], num_streams);
  while (unit >= num_units) {
    unit -= num_units;
    result.column_offset += args.weights[result.weight].num_outputs;
    num_units = units_of(args.weights[++result.weight], num_streams);
  }
  const bool is_adjacent = order == PanelOrder::kAdjacent;
  const int64_t first = is_adjacent ? unit * num_streams : unit, step = is_adjacent ? 1 : num_units;
  for (int i = 0; i < num_streams; ++i)
    if (first + i * step < args.weights[result.weight].num_panels())
      result.panels[result.num_panels++] = first + i * step;
  return result;
}

namespace scalar {
const Kernels& kernels();
}
namespace avx2 {
const Kernels& kernels();
}
namespace avxvnni {
const Kernels& kernels();
}
namespace avx512 {
const Kernels& kernels();
}
namespace avx512vnni {
const Kernels& kernels();
}
namespace amx {
const Kernels& kernels();
}

}  // namespace subsecond
