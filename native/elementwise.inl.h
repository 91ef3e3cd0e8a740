// Pieces that both arithmetics share, over a vector `V` of sixteen floats that the including file defines.
//
// Every operation is one IEEE operation on each of sixteen lanes, and sums over lanes use one fixed tree, so all
// instruction sets give the same bits. No std templates here: the linker could keep another set's copy of them.

// --- exponential and activation -------------------------------------------------------------------------------------

// exp(x) = (1 + r p) 2^n with r = x - n ln2: Cody and Waite range reduction, degree 6 polynomial (minimax on +-ln2/2).
struct ReducedExp {
  V r, p, power;
};

// Inputs are clamped to [-87, 88]; the operands' order lets NaN through.
static inline ReducedExp reduce_exp(V x) {
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
  return {r, p, V::pow2(n)};
}

// Relative error under 2e-7; exp(0) is exactly 1.
static inline V exp_v(V x) {
  const ReducedExp e = reduce_exp(x);
  return V::mul(V::fma(e.p, e.r, V::set1(1.0f)), e.power);
}

// tanh(x) = m / (m + 2) with m = exp(2 x) - 1, which loses nothing near 0 when it is made of 2^n r p and 2^n - 1.
static inline V tanh_v(V x) {
  const ReducedExp e = reduce_exp(V::add(x, x));
  const V m = V::fma(V::mul(e.p, e.r), e.power, V::sub(e.power, V::set1(1.0f)));
  return V::div(m, V::add(m, V::set1(2.0f)));
}

static inline V softcap_v(V x, V cap) { return V::mul(cap, tanh_v(V::div(x, cap))); }

// x / (1 + exp(-y))
static inline V times_sigmoid(V x, V y) { return V::div(x, V::add(V::set1(1.0f), exp_v(V::sub(V::set1(0.0f), y)))); }

// x Phi(x) = max(x, 0) - |x| Q(|x|); the upper tail Q(a) of the normal distribution is exp(-a^2 / 2) t P(t) with
// t = 1 / (1 + 0.33 a), P fitted for the least relative error, 5e-8 (the form is that of Abramowitz and
// Stegun, 7.1.26).
static inline V gelu(V x) {
  // bounded, so that an infinite x meets no zero; the operands' order lets NaN through
  const V a = V::min(V::set1(1e4f), V::max(x, V::sub(V::set1(0.0f), x)));
  const V t = V::div(V::set1(1.0f), V::fma(a, V::set1(0.33f), V::set1(1.0f)));
  constexpr float coefficients[] = {0.12486914f, -0.27079603f, 0.22864859f, -0.059216496f,
                                    0.12292442f, 0.11079453f,  0.13233908f, 0.13162014f};
  V p = V::set1(-0.02118334f);
  for (const float coefficient : coefficients) p = V::fma(p, t, V::set1(coefficient));
  const V tail = V::mul(p, exp_v(V::mul(V::mul(V::set1(-0.5f), a), a)));
  return V::sub(V::max(V::set1(0.0f), x), V::mul(V::mul(a, t), tail));
}

// x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
static inline V gelu_tanh(V x) {
  const V inner = V::fma(V::mul(V::mul(x, x), x), V::set1(0.044715f), x);
  return times_sigmoid(x, V::mul(inner, V::set1(1.5957691f)));
}

static inline V activate_v(Activation activation, V x) {
  if (activation == Activation::kSilu) return times_sigmoid(x, x);
  return activation == Activation::kGelu ? gelu(x) : gelu_tanh(x);
}

// --- normalization and element-wise operators -----------------------------------------------------------------------

static inline int lanes_left(int64_t left) { return left >= 16 ? 16 : static_cast<int>(left); }

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

// --- scores of attention --------------------------------------------------------------------------------------------

struct BlockRange {
  int first, count;
};

// The positions of the block at `start` that are visible: [first, count) of it, empty when none are.
static inline BlockRange range_in_block(Visible visible, int64_t start) {
  const int64_t first = visible.begin - start, end = visible.end - start;
  return {first < 0 ? 0 : static_cast<int>(first < kBlockTokens ? first : kBlockTokens),
          end < 0 ? 0 : static_cast<int>(end < kBlockTokens ? end : kBlockTokens)};
}

static inline V keep_range(V v, int first, int count, float other) {
  v = V::keep_first(v, count, other);
  return first > 0 ? V::drop_first(v, first, other) : v;
}

static inline V mask_scores(V scores, int first, int count) {
  return keep_range(scores, first, count, -__builtin_inff());
}

static inline V cap_scores(V products, float scale, float softcap) {
  const V scores = V::mul(products, V::set1(scale));
  return softcap > 0.0f ? softcap_v(scores, V::set1(softcap)) : scores;
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
    v = V::mul(activate_v(args.activation, v), up);
  }
  if (args.residual.data) v = V::add(load_lanes(args.residual.row(row) + output_column, left), v);
  store_lanes(args.output.row(row) + output_column, v, left);
}

static inline int64_t padded_width(int64_t width) { return (width + kTileInputs - 1) / kTileInputs * kTileInputs; }
