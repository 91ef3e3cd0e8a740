// Kernels of every instruction set but AMX, written once over a vector `V` of sixteen floats and compiled once per
// instruction set: operators in float32, linears of quantized weights in i16 arithmetic.
//
// The including file defines, in its own namespace, `V` and `I` with the operations used here, dot_add, the code
// readers, kRowBlock (rows by sixteen outputs in registers; divides kGroupRows) and, for unquantized weights,
// kFloatRows and kColumnBlock.

#include "elementwise.inl.h"
#include "tile_scales.inl.h"

// --- element-wise operators -----------------------------------------------------------------------------------------

static void rms_norm(Matrix input, Matrix output, int64_t width, const float* weight, float eps, int64_t begin,
                     int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* x = input.row(row);
    const V factor = V::set1(norm_factor(x, width, eps));
    for (int64_t k = 0; k < width; k += 16) {
      const V scaled = V::mul(load_lanes(x + k, width - k), factor);
      store_lanes(output.row(row) + k, V::mul(scaled, load_lanes(weight + k, width - k)), width - k);
    }
  }
}

static void gated_silu(Matrix gate, Matrix up, Matrix output, int64_t width, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t k = 0; k < width; k += 16) {
      const V g = load_lanes(gate.row(row) + k, width - k), u = load_lanes(up.row(row) + k, width - k);
      store_lanes(output.row(row) + k, silu_times(g, u), width - k);
    }
}

static void add(Matrix left, Matrix right, Matrix output, int64_t width, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t k = 0; k < width; k += 16) {
      const V l = load_lanes(left.row(row) + k, width - k), r = load_lanes(right.row(row) + k, width - k);
      store_lanes(output.row(row) + k, V::add(l, r), width - k);
    }
}

static void rope(Matrix input, Matrix output, const RotaryArgs& rotary, int64_t head_dim, int64_t num_heads,
                 const int32_t* positions, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t h = 0; h < num_heads; ++h)
      rotate_head(input.row(row) + h * head_dim, output.row(row) + h * head_dim, rotary, positions[row], head_dim);
}

// --- weights to float32 ---------------------------------------------------------------------------------------------

// w = d * code + m; [1] is for inputs 16..31 of formats with two scales a row.
struct TileScales {
  float d[2][16];
  float m[2][16];
};

template <Format F>
static inline void read_scales(const uint8_t* header, const uint8_t* tile, TileScales& scales) {
  for (int half = 0; half < format_info(F).num_scales(); ++half) {
    const RowScales rows = tile_scales<F>(header, tile, half);
    V::store(scales.d[half], rows.d);
    V::store(scales.m[half], rows.m);
  }
}

// The sixteen codes of row n from input 16 * half on, as floats; plain formats give the weights themselves.
template <Format F>
static inline V read_codes(const uint8_t* tile, int n, int half) {
  constexpr FormatInfo info = format_info(F);
  const uint8_t* codes = tile + info.codes_at(n);
  const uint8_t* high = tile + info.high_at(n);
  if constexpr (info.codes == CodeFields::kF32) return V::load(reinterpret_cast<const float*>(codes) + 16 * half);
  if constexpr (info.codes == CodeFields::kF16) return codes_f16(codes + 32 * half);
  if constexpr (info.codes == CodeFields::kBF16) return codes_bf16(codes + 32 * half);
  if constexpr (info.codes == CodeFields::kTwoBits) return codes_u2(codes, half);
  if constexpr (info.codes == CodeFields::kThreeBits) return codes_u3(codes, high, half);
  if constexpr (info.codes == CodeFields::kFourBits) return codes_u4(codes, half);
  if constexpr (info.codes == CodeFields::kFiveBits) return codes_u5(codes, high, half);
  if constexpr (info.codes == CodeFields::kSixBits) return codes_u6(codes, high, half);
  if constexpr (info.codes == CodeFields::kBytes) return codes_s8(codes + 16 * half);
  if constexpr (info.codes == CodeFields::kNonlinear) return codes_nonlinear(codes, half);
}

template <Format F>
static inline V read_weights(const uint8_t* tile, const TileScales& scales, int n, int half) {
  const V codes = read_codes<F>(tile, n, half);
  if constexpr (format_info(F).is_plain()) return codes;
  const int scale = format_info(F).num_scales() == 2 ? half : 0;
  return V::fma(codes, V::set1(scales.d[scale][n]), V::set1(scales.m[scale][n]));
}

// Calls visit(t, tile, scales) for every tile t of a panel in order.
template <Format F, class Visit>
static inline void each_tile(const PackedWeight& weight, int64_t panel, Visit visit) {
  constexpr FormatInfo info = format_info(F);
  const uint8_t* header = weight.data + panel * weight.panel_bytes();
  TileScales scales;
  for (int64_t t = 0; t < weight.num_tiles();) {
    const uint8_t* tile = header + info.header_bytes;
    for (int64_t i = 0; i < info.tiles_per_super; ++i, ++t, tile += info.tile_bytes) {
      if constexpr (!info.is_plain()) read_scales<F>(header, tile, scales);
      visit(t, tile, scales);
    }
    header = tile;
  }
}

// Rows [begin, end) of a panel as float32 [end - begin][num_tiles * 32].
template <Format F>
static void unpack_rows(const PackedWeight& weight, int64_t panel, int begin, int end, float* output) {
  const int64_t width = weight.num_tiles() * kTileInputs;
  each_tile<F>(weight, panel, [=](int64_t t, const uint8_t* tile, const TileScales& scales) {
    for (int n = begin; n < end; ++n)
      for (int half = 0; half < 2; ++half)
        V::store(output + (n - begin) * width + t * kTileInputs + 16 * half, read_weights<F>(tile, scales, n, half));
  });
}

using UnpackRows = void (*)(const PackedWeight&, int64_t, int, int, float*);

static constexpr auto kUnpackRows = format_table([]<Format F>() -> UnpackRows { return unpack_rows<F>; });

static void unpack_row(const PackedWeight& weight, int64_t index, float* output) {
  const int64_t panel = index / kPanelOutputs;
  const int n = static_cast<int>(index % kPanelOutputs);
  if (weight.num_inputs % kTileInputs == 0) return kUnpackRows[weight.format](weight, panel, n, n + 1, output);
  const int64_t bytes = weight.num_tiles() * kTileInputs * static_cast<int64_t>(sizeof(float));
  float* padded = static_cast<float*>(__builtin_alloca(static_cast<size_t>(bytes)));
  kUnpackRows[weight.format](weight, panel, n, n + 1, padded);
  __builtin_memcpy(output, padded, static_cast<size_t>(weight.num_inputs) * sizeof(float));
}

#include "f32_attention.inl.h"
#include "i16_linear.inl.h"

static int64_t scratch_bytes(int64_t max_inputs, int64_t head_dim) {
  const int64_t panels = 4 * unpacked_bytes(padded_width(max_inputs));
  const int64_t heads = kHeadBlock * (2 * padded_width(head_dim) + kBlockTokens) * static_cast<int64_t>(sizeof(float));
  return panels > heads ? panels : heads;
}

static constexpr Kernels make_kernels(const char* isa) {
  return Kernels{isa,      "i16",  "f32",       activation_bytes, scratch_bytes, head_bytes, pack_rows, linear,
                 store_kv, attend, attend_rows, rms_norm,         rope,          gated_silu, add,       unpack_row};
}
