// Kernels of every instruction set but AMX, written once over a vector `V` of sixteen floats and compiled once per
// instruction set: operators in float32, linears of quantized weights in i16 arithmetic.
//
// The including file defines, in its own namespace, `V` and `I` with the operations used here, dot_add, dot_bytes_add,
// dot_nibbles_add, the code readers, kRowBlock rows by kPanelBlock panels (in registers; rows divide kGroupRows, panels
// divide 4), for unquantized weights kFloatRows and kColumnBlock, for channel formats kByteRows, kBytePanels and
// kByteOffset (what dot_bytes_add leaves in a byte of a weight).

#include "elementwise.inl.h"
#include "logits.inl.h"
#include "tile_scales.inl.h"

// --- element-wise operators -----------------------------------------------------------------------------------------

static inline float mean_of(const float* x, int64_t width) {
  V sum = V::set1(0.0f);
  for (int64_t k = 0; k < width; k += 16) sum = V::add(sum, load_lanes(x + k, width - k));
  return V::sum(sum) / static_cast<float>(width);
}

// 1 / sqrt(variance + eps), from the differences to the mean, since the mean of squares would cancel.
static inline float deviation_factor(const float* x, int64_t width, float mean, float eps) {
  V sum = V::set1(0.0f);
  for (int64_t k = 0; k < width; k += 16) {
    const V v = V::keep_first(V::sub(load_lanes(x + k, width - k), V::set1(mean)), lanes_left(width - k), 0.0f);
    sum = V::fma(v, v, sum);
  }
  return 1.0f / __builtin_sqrtf(V::sum(sum) / static_cast<float>(width) + eps);
}

static inline void normalize_group(const float* x, float* y, const NormArgs& norm) {
  const int64_t width = norm.group_width;
  const float mean = norm.is_layer ? mean_of(x, width) : 0.0f;
  const float factor = norm.is_layer ? deviation_factor(x, width, mean, norm.eps) : norm_factor(x, width, norm.eps);
  for (int64_t k = 0; k < width; k += 16) {
    V v = load_lanes(x + k, width - k);
    if (norm.is_layer) v = V::sub(v, V::set1(mean));
    v = V::mul(V::mul(v, V::set1(factor)), load_lanes(norm.weight + k, width - k));
    if (norm.bias) v = V::add(v, load_lanes(norm.bias + k, width - k));
    store_lanes(y + k, v, width - k);
  }
}

static void normalize(Matrix input, Matrix output, int64_t width, const NormArgs& norm, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t k = 0; k < width; k += norm.group_width)
      normalize_group(input.row(row) + k, output.row(row) + k, norm);
}

// output = f(input), sixteen channels at once.
template <class F>
static inline void map_rows(Matrix input, Matrix output, int64_t width, int64_t begin, int64_t end, F f) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t k = 0; k < width; k += 16)
      store_lanes(output.row(row) + k, f(load_lanes(input.row(row) + k, width - k)), width - k);
}

template <class F>
static inline void map_pairs(Matrix left, Matrix right, Matrix output, int64_t width, int64_t begin, int64_t end, F f) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t k = 0; k < width; k += 16) {
      const V l = load_lanes(left.row(row) + k, width - k), r = load_lanes(right.row(row) + k, width - k);
      store_lanes(output.row(row) + k, f(l, r), width - k);
    }
}

static void gated_activation(Matrix gate, Matrix up, Matrix output, int64_t width, Activation activation, int64_t begin,
                             int64_t end) {
  map_pairs(gate, up, output, width, begin, end, [=](V g, V u) { return V::mul(activate_v(activation, g), u); });
}

static void activate(Matrix input, Matrix output, int64_t width, Activation activation, int64_t begin, int64_t end) {
  map_rows(input, output, width, begin, end, [=](V x) { return activate_v(activation, x); });
}

static void add(Matrix left, Matrix right, Matrix output, int64_t width, int64_t begin, int64_t end) {
  map_pairs(left, right, output, width, begin, end, [](V l, V r) { return V::add(l, r); });
}

static void scale(Matrix input, Matrix output, int64_t width, float factor, int64_t begin, int64_t end) {
  map_rows(input, output, width, begin, end, [=](V x) { return V::mul(x, V::set1(factor)); });
}

static void softcap(Matrix input, Matrix output, int64_t width, float cap, int64_t begin, int64_t end) {
  map_rows(input, output, width, begin, end, [=](V x) { return softcap_v(x, V::set1(cap)); });
}

static void softmax(const float* input, float* output, int64_t width) {
  V largest = V::set1(-__builtin_inff()), sum = V::set1(0.0f);
  for (int64_t k = 0; k < width; k += 16)
    largest =
        V::max(largest, V::keep_first(load_lanes(input + k, width - k), lanes_left(width - k), -__builtin_inff()));
  const V maximum = V::set1(V::largest(largest));
  for (int64_t k = 0; k < width; k += 16) {
    const V p = exp_v(V::sub(load_lanes(input + k, width - k), maximum));
    sum = V::add(sum, V::keep_first(p, lanes_left(width - k), 0.0f));
    store_lanes(output + k, p, width - k);
  }
  const V total = V::set1(V::sum(sum));
  for (int64_t k = 0; k < width; k += 16)
    store_lanes(output + k, V::div(load_lanes(output + k, width - k), total), width - k);
}

static void add_scaled(const float* input, float* output, int64_t width, float factor) {
  for (int64_t k = 0; k < width; k += 16) {
    const V sum = V::fma(load_lanes(input + k, width - k), V::set1(factor), load_lanes(output + k, width - k));
    store_lanes(output + k, sum, width - k);
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

static void unpack_sparse_rows(const PackedWeight& weight, int64_t panel, int begin, int end, float* output);
static void unpack_list_rows(const PackedWeight& weight, int64_t panel, int begin, int end, float* output);

static inline UnpackRows unpack_rows_of(Format format) {
  if (format == Format::kF16_LIST) return unpack_list_rows;
  return format == Format::kF16_SPARSE ? unpack_sparse_rows : kUnpackRows[format];
}

static void unpack_row(const PackedWeight& weight, int64_t index, float* output) {
  const int64_t panel = index / kPanelOutputs;
  const int n = static_cast<int>(index % kPanelOutputs);
  const UnpackRows unpack = unpack_rows_of(weight.format);
  if (weight.num_inputs % kTileInputs == 0) return unpack(weight, panel, n, n + 1, output);
  const int64_t bytes = weight.num_tiles() * kTileInputs * static_cast<int64_t>(sizeof(float));
  float* padded = static_cast<float*>(__builtin_alloca(static_cast<size_t>(bytes)));
  unpack(weight, panel, n, n + 1, padded);
  __builtin_memcpy(output, padded, static_cast<size_t>(weight.num_inputs) * sizeof(float));
}

// Each needs what stands before it.
// clang-format off
#include "i16_linear.inl.h"
#include "byte_codes.inl.h"
#include "attention_cache.inl.h"
#include "f32_attention.inl.h"
#include "int8_linear.inl.h"
// clang-format on

static int64_t scratch_bytes(int64_t max_inputs, int64_t head_dim) {
  const int64_t width = padded_width(max_inputs);
  const int64_t panels =
      kSumsBytes + 4 * (unpacked_bytes(width) + UnpackedTiles::kNumBytes) + ListScratch::num_bytes(width);
  const int64_t attention = attend_scratch_bytes(head_dim);
  return panels > attention ? panels : attention;
}

static constexpr Kernels make_kernels(const char* isa) {
  return {.isa = isa,
          .arithmetic = "i16",
          .stored = {activation_bytes, pack_rows, linear},
          .channel = {quantized_bytes, quantize_rows, channel_linear},
          .scratch_bytes = scratch_bytes,
          .attention = {attention_kernels<Halves>(), attention_kernels<ByteCodes>()},
          .normalize = normalize,
          .rope = rope,
          .gated_activation = gated_activation,
          .activate = activate,
          .add = add,
          .scale = scale,
          .softcap = softcap,
          .softmax = softmax,
          .add_scaled = add_scaled,
          .rotate = rotate,
          .unpack_row = unpack_row,
          .block_maxima = block_maxima,
          .sum_exp = sum_exp};
}
