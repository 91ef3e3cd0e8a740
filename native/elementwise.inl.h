// Pieces that both arithmetics share, over a vector `V` of sixteen floats that the including file defines.
//
// Every operation is one IEEE operation on each of sixteen lanes, and sums over lanes use one fixed tree, so all
// instruction sets give the same bits. No std templates here: the linker could keep another set's copy of them.

// --- exponential and activation -------------------------------------------------------------------------------------

// exp(x) with a relative error under 2e-7; Cody and Waite range reduction, degree 6 polynomial (minimax on +-ln2/2).
// exp(0) is exactly 1. Inputs are clamped to [-87, 88]; the operands' order lets NaN through.
static inline V exp_v(V x) {
  x = V::max(V::set1(-87.0f), V::min(V::set1(88.0f), x));
  const V n = V::round(V::mul(x, V::set1(1.44269504f)));
  V r = V::fma(n, V::set1(-0.693359375f), x);
  r = V::fma(n, V::set1(2.12194440e-4f), r);
  V p = V::set1(1.3888889e-3f);
  p = V::fma(p, r, V::set1(8.3333333e-3f));
  p = V::fma(p, r, V::set1(4.1666667e-2f));
  p = V::fma(p, r, V::set1(1.6666667e-1f));
  p = V::fma(p, r, V::set1(0.5f));
  p = V::fma(p, r, V::set1(1.0f));
  p = V::fma(p, r, V::set1(1.0f));
  return V::mul(p, V::pow2(n));
}

static inline V silu_times(V gate, V up) {
  const V denominator = V::add(V::set1(1.0f), exp_v(V::sub(V::set1(0.0f), gate)));
  return V::mul(V::div(gate, denominator), up);
}

// --- normalization and element-wise operators -----------------------------------------------------------------------

static inline V load_lanes(const float* p, int64_t left) {
  return left >= 16 ? V::load(p) : V::load_n(p, static_cast<int>(left));
}

static inline void store_lanes(float* p, V v, int64_t left) {
  if (left >= 16)
    V::store(p, v);
  else
    V::store_n(p, v, static_cast<int>(left));
}

static inline float norm_factor(const float* x, int64_t width, float eps) {
  V sum = V::set1(0.0f);
  for (int64_t k = 0; k < width; k += 16) {
    const V v = load_lanes(x + k, width - k);
    sum = V::fma(v, v, sum);
  }
  return 1.0f / __builtin_sqrtf(V::sum(sum) / static_cast<float>(width) + eps);
}

// --- rotary position embedding --------------------------------------------------------------------------------------

static inline void rotate_head(const float* x, float* y, const RotaryArgs& rotary, int64_t position, int64_t head_dim) {
  const float* table = rotary.cos_sin + position * rotary.dims;
  const int64_t step = rotary.is_interleaved ? 2 : 1;
  const int64_t partner = rotary.is_interleaved ? 1 : rotary.dims / 2;
  for (int64_t i = 0; i < rotary.dims / 2; ++i) {
    const float c = table[2 * i], s = table[2 * i + 1];
    const float a = x[i * step], b = x[i * step + partner];
    y[i * step] = a * c - b * s;
    y[i * step + partner] = a * s + b * c;
  }
  for (int64_t i = rotary.dims; i < head_dim; ++i) y[i] = x[i];
}

// --- outputs of a linear --------------------------------------------------------------------------------------------

// Sixteen outputs of one row: bias, activation, residual, store.
static inline void write_outputs(const LinearArgs& args, int weight, int64_t row, int64_t column, int64_t output_column,
                                 const float* sums, const float* up_sums) {
  const int64_t left = args.weights[weight].num_outputs - column;
  V v = V::load(sums);
  if (args.biases[weight]) v = V::add(v, load_lanes(args.biases[weight] + column, left));
  if (up_sums) {
    V up = V::load(up_sums);
    if (args.biases[1]) up = V::add(up, load_lanes(args.biases[1] + column, left));
    v = silu_times(v, up);
  }
  if (args.residual.data) v = V::add(load_lanes(args.residual.row(row) + output_column, left), v);
  store_lanes(args.output.row(row) + output_column, v, left);
}

static inline int64_t padded_width(int64_t width) { return (width + kTileInputs - 1) / kTileInputs * kTileInputs; }
