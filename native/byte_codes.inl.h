// A row is rotated (rotation.h) and rounded to codes of eight bits with one scale; included by f32_kernels.inl.h.

// --- rotation
// ---------------------------------------------------------------------------------------------------------

// Every lane minus or plus its partner at distance `step`, lower partner first.
template <int step>
static inline V butterfly(V a) {
  alignas(64) static constexpr auto signs = [] {
    struct Signs {
      float lane[16];
    } s{};
    for (int i = 0; i < 16; ++i) s.lane[i] = i & step ? -1.0f : 1.0f;
    return s;
  }();
  return V::fma(a, V::load(signs.lane), V::template exchange<step>(a));
}

static inline V rotate_lanes(V v, int64_t block) {
  if (block > 1) v = butterfly<1>(v);
  if (block > 2) v = butterfly<2>(v);
  if (block > 4) v = butterfly<4>(v);
  return block > 8 ? butterfly<8>(v) : v;
}

// Sixteen channels of every block, the same ones, across the blocks.
template <int count>
static inline void mix_blocks(float* x, int64_t block, const float* matrix) {
  V in[count];
  for (int j = 0; j < count; ++j) in[j] = V::load(x + j * block);
  for (int i = 0; i < count; ++i) {
    V sum = V::mul(in[0], V::set1(matrix[i * count]));
    for (int j = 1; j < count; ++j) sum = V::fma(in[j], V::set1(matrix[i * count + j]), sum);
    V::store(x + i * block, sum);
  }
}

template <int count>
static void mix_all_blocks(float* x, int64_t block) {
  const float* matrix = hartley_matrix(count);
  for (int64_t k = 0; k < block; k += 16) mix_blocks<count>(x + k, block, matrix);
}

static void mix(float* x, const Rotation& rotation) {
  switch (rotation.num_mixed) {  // odd, since blocks are the largest power of two
    case 3:
      return mix_all_blocks<3>(x, rotation.block);
    case 5:
      return mix_all_blocks<5>(x, rotation.block);
    case 7:
      return mix_all_blocks<7>(x, rotation.block);
    case 9:
      return mix_all_blocks<9>(x, rotation.block);
    case 11:
      return mix_all_blocks<11>(x, rotation.block);
    default:
      return;
  }
}

static void rotate(float* x, int64_t width) {
  const Rotation rotation(width);
  const int64_t block = rotation.block;
  for (int64_t k = 0; k < width; k += 16)
    store_lanes(x + k, rotate_lanes(load_lanes(x + k, width - k), block), width - k);
  for (int64_t step = 16; step < block; step *= 2)
    for (int64_t begin = 0; begin < width; begin += 2 * step)
      for (int64_t k = begin; k < begin + step; k += 16) {
        const V a = V::load(x + k), b = V::load(x + k + step);
        V::store(x + k, V::add(a, b));
        V::store(x + k + step, V::sub(a, b));
      }
  mix(x, rotation);
}

// --- codes
// ------------------------------------------------------------------------------------------------------------

// code = round(x * inverse), x = code * factor up to rounding. Of a row of zeros both are 0; of one that is not finite
// the inverse is 0 and the factor NaN.
struct ByteScale {
  float inverse, factor;
};

// The scale of a row whose width is a multiple of 16.
static inline ByteScale byte_scale(const float* x, int64_t width) {
  V largest = V::set1(0.0f), poison = V::set1(0.0f);
  for (int64_t k = 0; k < width; k += 16) {
    const V v = V::load(x + k);
    largest = V::max(largest, magnitude(v));
    poison = V::fma(v, V::set1(0.0f), poison);
  }
  const float maximum = V::largest(largest), poisoned = V::sum(poison);
  const bool is_usable = maximum > kSmallestScaled && poisoned == 0.0f;
  return {is_usable ? 127.0f / maximum : 0.0f, (is_usable ? maximum * (1.0f / 127.0f) : 0.0f) + poisoned};
}

// Codes of a row whose width is a multiple of 16; returns the factor.
static inline float to_bytes(const float* x, int64_t width, int8_t* codes) {
  const ByteScale scale = byte_scale(x, width);
  for (int64_t k = 0; k < width; k += 16) {
    const V rounded = V::round(V::mul(V::load(x + k), V::set1(scale.inverse)));
    store_bytes(codes + k, scale.inverse != 0.0f ? rounded : V::set1(0.0f));
  }
  return scale.factor;
}
