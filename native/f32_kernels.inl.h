// Kernels of the f32 arithmetic, written once over a vector `V` of sixteen floats and compiled once per instruction
// set.
//
// The including file defines, in its own namespace, `V` with the operations used here, kRowBlock, kColumnBlock,
// kSingleRows and the code readers.

#include "elementwise.inl.h"
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

// sums[n] = activations . row n of a panel, for one row of activations: the weights never leave the registers. The
// order of additions is that of dot_block.
template <Format F>
static void dot_single(const PackedWeight& weight, int64_t panel, const float* a, float* sums) {
  for (int first = 0; first < 16; first += kSingleRows) {
    V acc[kSingleRows];
    for (int n = 0; n < kSingleRows; ++n) acc[n] = V::set1(0.0f);
    each_tile<F>(weight, panel, [&](int64_t t, const uint8_t* tile, const TileScales& scales) {
      const V low = V::load(a + t * kTileInputs), high = V::load(a + t * kTileInputs + 16);
      for (int n = 0; n < kSingleRows; ++n) {
        acc[n] = V::fma(low, read_weights<F>(tile, scales, first + n, 0), acc[n]);
        acc[n] = V::fma(high, read_weights<F>(tile, scales, first + n, 1), acc[n]);
      }
    });
    for (int n = 0; n < kSingleRows; ++n) sums[first + n] = V::sum(acc[n]);
  }
}

struct FormatKernels {
  void (*unpack_rows)(const PackedWeight&, int64_t, int, int, float*);
  void (*dot_single)(const PackedWeight&, int64_t, const float*, float*);
};

static constexpr auto kFormatKernels =
    format_table([]<Format F>() { return FormatKernels{unpack_rows<F>, dot_single<F>}; });

static inline const FormatKernels& kernels_of(Format format) { return kFormatKernels[format]; }

static void unpack_row(const PackedWeight& weight, int64_t index, float* output) {
  const int64_t panel = index / kPanelOutputs;
  const int n = static_cast<int>(index % kPanelOutputs);
  if (weight.num_inputs % kTileInputs == 0)
    return kernels_of(weight.format).unpack_rows(weight, panel, n, n + 1, output);
  const int64_t bytes = weight.num_tiles() * kTileInputs * static_cast<int64_t>(sizeof(float));
  float* padded = static_cast<float*>(__builtin_alloca(static_cast<size_t>(bytes)));
  kernels_of(weight.format).unpack_rows(weight, panel, n, n + 1, padded);
  __builtin_memcpy(output, padded, static_cast<size_t>(weight.num_inputs) * sizeof(float));
}

// --- linear ---------------------------------------------------------------------------------------------------------

static int64_t activation_bytes(int64_t num_rows, int64_t width) {
  return num_rows * padded_width(width) * static_cast<int64_t>(sizeof(float));
}

static void pack_rows(const PackArgs& args, int64_t begin, int64_t end) {
  const int64_t padded = padded_width(args.width);
  const int64_t last = end * kGroupRows < args.num_rows ? end * kGroupRows : args.num_rows;
  for (int64_t row = begin * kGroupRows; row < last; ++row) {
    const float* x = args.input.row(row);
    float* out = reinterpret_cast<float*>(args.packed) + row * padded;
    const V factor = V::set1(args.norm_weight ? norm_factor(x, args.width, args.norm_eps) : 1.0f);
    for (int64_t k = 0; k < padded; k += 16) {
      const int64_t left = args.width - k;
      V v = left > 0 ? load_lanes(x + k, left) : V::set1(0.0f);
      if (args.norm_weight && left > 0) v = V::mul(V::mul(v, factor), load_lanes(args.norm_weight + k, left));
      V::store(out + k, v);
    }
  }
}

// sums[r][c] = activations row r . weights row c, R rows by C columns at once.
template <int R, int C>
static inline void dot_block(const float* a, const float* w, int64_t width, float* sums) {
  V acc[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) acc[r][c] = V::set1(0.0f);
  for (int64_t k = 0; k < width; k += 16) {
    V weight[C];
    for (int c = 0; c < C; ++c) weight[c] = V::load(w + c * width + k);
    for (int r = 0; r < R; ++r) {
      const V x = V::load(a + r * width + k);
      for (int c = 0; c < C; ++c) acc[r][c] = V::fma(x, weight[c], acc[r][c]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sums[r * 16 + c] = V::sum(acc[r][c]);
}

template <int R>
static inline void dot_panel(const float* a, const float* w, int64_t width, float* sums) {
  for (int c = 0; c < 16; c += kColumnBlock) dot_block<R, kColumnBlock>(a, w + c * width, width, sums + c);
}

static void linear_panel(const LinearArgs& args, int weight, int64_t panel, int64_t column_offset, float* scratch) {
  const int64_t width = args.weights[weight].num_tiles() * kTileInputs, column = panel * kPanelOutputs;
  const int num_parts = args.is_gated ? 2 : 1;
  const float* a = reinterpret_cast<const float*>(args.packed);
  float sums[2][kRowBlock * 16];
  for (int part = 0; part < num_parts; ++part) {
    const PackedWeight& w = args.weights[weight + part];
    if (args.num_rows == 1)
      kernels_of(w.format).dot_single(w, panel, a, sums[part]);
    else
      kernels_of(w.format).unpack_rows(w, panel, 0, 16, scratch + part * 16 * width);
  }
  for (int64_t row = 0; row < args.num_rows;) {
    const int64_t count = args.num_rows - row >= kRowBlock ? kRowBlock : 1;
    for (int part = 0; part < num_parts && args.num_rows > 1; ++part) {
      const float* w = scratch + part * 16 * width;
      if (count == kRowBlock)
        dot_panel<kRowBlock>(a + row * width, w, width, sums[part]);
      else
        dot_panel<1>(a + row * width, w, width, sums[part]);
    }
    for (int64_t r = 0; r < count; ++r, ++row)
      write_outputs(args, weight, row, column, column_offset + column, sums[0] + 16 * r,
                    args.is_gated ? sums[1] + 16 * r : nullptr);
  }
}

static void linear(const LinearArgs& args, int64_t begin, int64_t end, uint8_t* scratch) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const UnitPanels work = unit_panels(args, unit);
    for (int i = 0; i < work.num_panels; ++i)
      linear_panel(args, work.weight, work.panels[i], work.column_offset, reinterpret_cast<float*>(scratch));
  }
}

#include "f32_attention.inl.h"

static int64_t scratch_bytes(int64_t max_inputs, int64_t head_dim) {
  const int64_t panels = 2 * 16 * padded_width(max_inputs);
  const int64_t heads = kHeadBlock * (2 * padded_width(head_dim) + kBlockTokens);
  return (panels > heads ? panels : heads) * static_cast<int64_t>(sizeof(float));
}

static constexpr Kernels make_kernels(const char* isa) {
  return Kernels{isa,      "f32",    "f32",  activation_bytes, scratch_bytes, head_bytes, pack_rows,
                 linear,   store_kv, attend, attend_rows,      normalize,     rope,       gated_activation,
                 activate, add,      scale,  softcap,          softmax,       add_scaled, unpack_row};
}
