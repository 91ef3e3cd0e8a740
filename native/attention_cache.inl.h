// How keys and values of one head are stored in blocks of 32 positions; included by f32_kernels.inl.h.
//
// A block of halves is K [head_dim][32], V [32][value_width]. Numbers beyond the range of half precision become the
// largest one whatever the type, so that one outlier turns no sum into infinity; NaN stays NaN, and belongs to its own
// position alone.

// IEEE half precision, ties to even.
struct Halves {
  using Code = uint16_t;
  static constexpr const char* kName = "f16";
  static constexpr bool kIsScaled = false;
};

// Codes of eight bits, times one factor for the keys of a position and one for its values. Keys, and the queries that
// meet them, are rotated (rotation.h), and codes are of the difference from the origin, the block's first key in half
// precision: some models have keys with a few channels that are large, and much the same at neighbouring positions.
// A block is K [head_dim][32], factors [32], origin [value_width], V [32][value_width], factors [32].
struct ByteCodes {
  using Code = int8_t;
  static constexpr const char* kName = "int8";
  static constexpr bool kIsScaled = true;
};

static int64_t value_width(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

static int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class Kv>
struct HeadBlock {
  using Code = typename Kv::Code;

  uint8_t* data;
  int64_t head_dim;

  static constexpr int64_t kFactorsBytes = kBlockTokens * static_cast<int64_t>(sizeof(float));
  int64_t factors_at() const { return whole_lines(kBlockTokens * head_dim * static_cast<int64_t>(sizeof(Code))); }
  int64_t origin_at() const { return factors_at() + kFactorsBytes; }
  int64_t values_at() const {
    if constexpr (!Kv::kIsScaled) return factors_at();
    return origin_at() + whole_lines(value_width(head_dim) * static_cast<int64_t>(sizeof(uint16_t)));
  }
  int64_t value_factors_at() const {
    return values_at() + whole_lines(kBlockTokens * value_width(head_dim) * static_cast<int64_t>(sizeof(Code)));
  }
  int64_t num_bytes() const { return value_factors_at() + (Kv::kIsScaled ? kFactorsBytes : 0); }

  Code* keys() const { return reinterpret_cast<Code*>(data); }
  Code* values() const { return reinterpret_cast<Code*>(data + values_at()); }
  float* key_factors() const { return reinterpret_cast<float*>(data + factors_at()); }
  float* value_factors() const { return reinterpret_cast<float*>(data + value_factors_at()); }
  uint16_t* origin() const { return reinterpret_cast<uint16_t*>(data + origin_at()); }
};

template <class Kv>
static int64_t head_bytes(int64_t head_dim) {
  return HeadBlock<Kv>{nullptr, head_dim}.num_bytes();
}

template <class Kv>
static inline HeadBlock<Kv> head_block(const AttentionArgs& args, const Span& span, int64_t block, int64_t kv_head) {
  const int64_t index = span.blocks[block] * args.num_kv_heads + kv_head;
  return {args.cache.data + index * args.cache.head_bytes, args.head_dim};
}

static inline V read(const uint16_t* p) { return codes_f16(reinterpret_cast<const uint8_t*>(p)); }
static inline V read(const int8_t* p) { return codes_s8(reinterpret_cast<const uint8_t*>(p)); }
static inline V read(const float* p) { return V::load(p); }

constexpr float kLargestHalf = 65504.0f;

// Within the range of half precision; the operands' order lets NaN through.
static inline V bound(V v) { return V::max(V::set1(-kLargestHalf), V::min(V::set1(kLargestHalf), v)); }

// Copies `count` numbers, bounded, and zeros up to a multiple of 16.
static inline void load_bounded(const float* x, int64_t count, float* bounded) {
  for (int64_t c = 0; c < count; c += 16) V::store(bounded + c, bound(load_lanes(x + c, count - c)));
}

static inline void to_halves(const float* x, int64_t width, uint16_t* halves) {
  for (int64_t c = 0; c < width; c += 16) V::store_half(halves + c, V::load(x + c));
}

// The origin of a block: its first key, rotated; zeros where that is NaN, of which min and max give the other operand.
static inline void store_origin(const float* key, int64_t width, uint16_t* origin) {
  for (int64_t c = 0; c < width; c += 16) {
    const V number = bound(V::load(key + c));
    const V twice = V::add(V::min(number, V::set1(kLargestHalf)), V::max(number, V::set1(-kLargestHalf)));
    V::store_half(origin + c, V::mul(twice, V::set1(0.5f)));
  }
}

static inline void subtract(float* key, const uint16_t* origin, int64_t width) {
  for (int64_t c = 0; c < width; c += 16) V::store(key + c, V::sub(V::load(key + c), read(origin + c)));
}

// `key` and `value` are bounded, with zeros up to a multiple of 16; `codes` get those of the key.
static inline void store_position(const HeadBlock<Halves>& block, int64_t slot, const float* key, const float* value,
                                  uint16_t* codes) {
  const int64_t width = value_width(block.head_dim);
  to_halves(key, width, codes);
  to_halves(value, width, block.values() + slot * width);
}

static inline void store_position(const HeadBlock<ByteCodes>& block, int64_t slot, float* key, const float* value,
                                  int8_t* codes) {
  const int64_t width = value_width(block.head_dim);
  rotate(key, block.head_dim);
  if (slot == 0) store_origin(key, width, block.origin());
  subtract(key, block.origin(), width);
  block.key_factors()[slot] = to_bytes(key, width, codes);
  block.value_factors()[slot] = to_bytes(value, width, block.values() + slot * width);
}

template <class Kv>
static void store_kv(const AttentionArgs& args, const Span& span, int64_t begin, int64_t end, int64_t kv_head,
                     uint8_t* scratch) {
  const int64_t head_dim = args.head_dim, width = value_width(head_dim);
  float *key = reinterpret_cast<float*>(scratch), *value = key + width;
  auto* codes = reinterpret_cast<typename Kv::Code*>(value + width);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t position = span.position + (row - span.row_start), slot = position % kBlockTokens;
    const HeadBlock<Kv> block = head_block<Kv>(args, span, position / kBlockTokens, kv_head);
    const float* given = args.key.row(row) + kv_head * head_dim;
    if (args.rotary.dims) {
      rotate_head(given, key, args.rotary, position, head_dim);
      given = key;
    }
    load_bounded(given, head_dim, key);
    load_bounded(args.value.row(row) + kv_head * head_dim, head_dim, value);
    store_position(block, slot, key, value, codes);
    for (int64_t c = 0; c < head_dim; ++c) block.keys()[c * kBlockTokens + slot] = codes[c];
  }
}
