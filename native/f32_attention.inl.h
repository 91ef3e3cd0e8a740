// Attention in float32; included by f32_kernels.inl.h.
//
// A block of 32 positions of one head is K [head_dim][32] then V [32][padded head_dim], float32. Rows walk the blocks
// in order with a running maximum (online softmax, Milakov and Gimelshein 2018, arXiv 1805.02867), one block a time, so
// that the order of every sum depends on positions alone.

constexpr int kAttendRows = 8;  // rows of one piece of work
constexpr int kHeadBlock = 4;   // query heads that share one pass over K and V

static int64_t head_bytes(int64_t head_dim) {
  return kBlockTokens * (head_dim + padded_width(head_dim)) * static_cast<int64_t>(sizeof(float));
}

static int64_t attend_rows(int64_t) { return kAttendRows; }

static inline float* head_block(const AttentionArgs& args, const Span& span, int64_t block, int64_t kv_head) {
  const int64_t index = span.blocks[block] * args.num_kv_heads + kv_head;
  return reinterpret_cast<float*>(args.cache.data + index * args.cache.head_bytes);
}

static void store_kv(const AttentionArgs& args, const Span& span, int64_t begin, int64_t end, int64_t kv_head,
                     uint8_t* scratch) {
  float* rotated = reinterpret_cast<float*>(scratch);
  const int64_t padded = padded_width(args.head_dim);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t position = span.position + (row - span.row_start), slot = position % kBlockTokens;
    float* k_block = head_block(args, span, position / kBlockTokens, kv_head);
    float* v_block = k_block + kBlockTokens * args.head_dim;
    if (slot == 0) __builtin_memset(k_block, 0, static_cast<size_t>(args.cache.head_bytes));
    const float* key = args.key.row(row) + kv_head * args.head_dim;
    if (args.rotary.dims) {
      rotate_head(key, rotated, args.rotary, position, args.head_dim);
      key = rotated;
    }
    for (int64_t c = 0; c < args.head_dim; ++c) k_block[c * kBlockTokens + slot] = key[c];
    __builtin_memcpy(v_block + slot * padded, args.value.row(row) + kv_head * args.head_dim,
                     static_cast<size_t>(args.head_dim) * sizeof(float));
  }
}

struct HeadState {
  float maximum;
  float sum;
};

// Scores of H query heads against positions [first, count) of one block, softmax numerators into `weights` [H][32];
// returns the rescaling factors.
template <int H>
static inline void score_block(const float* queries, const float* k_block, const AttentionArgs& args, int first,
                               int count, HeadState* states, float* weights, float* factors) {
  const int64_t padded = padded_width(args.head_dim);
  V low[H], high[H];
  for (int h = 0; h < H; ++h) low[h] = high[h] = V::set1(0.0f);
  for (int64_t c = 0; c < args.head_dim; ++c) {
    const V k0 = V::load(k_block + c * kBlockTokens), k1 = V::load(k_block + c * kBlockTokens + 16);
    for (int h = 0; h < H; ++h) {
      const V q = V::set1(queries[h * padded + c]);
      low[h] = V::fma(q, k0, low[h]);
      high[h] = V::fma(q, k1, high[h]);
    }
  }
  for (int h = 0; h < H; ++h) {
    const V s0 = mask_scores(cap_scores(low[h], args.scale, args.softcap), first, count);
    const V s1 = mask_scores(cap_scores(high[h], args.scale, args.softcap), first - 16, count - 16);
    const float block_maximum = V::largest(V::max(s0, s1));
    const float maximum = states[h].maximum > block_maximum ? states[h].maximum : block_maximum;
    const V p0 = keep_range(exp_v(V::sub(s0, V::set1(maximum))), first, count, 0.0f);
    const V p1 = keep_range(exp_v(V::sub(s1, V::set1(maximum))), first - 16, count - 16, 0.0f);
    factors[h] = V::first(exp_v(V::set1(states[h].maximum - maximum)));
    states[h].sum = states[h].sum * factors[h] + V::sum(V::add(p0, p1));
    states[h].maximum = maximum;
    V::store(weights + h * 32, p0);
    V::store(weights + h * 32 + 16, p1);
  }
}

template <int H>
static inline void add_values(const float* v_block, int64_t padded, int first, int count, const float* weights,
                              const float* factors, float* outputs) {
  for (int64_t c = 0; c < padded; c += 16) {
    V sum[H];
    for (int h = 0; h < H; ++h) sum[h] = V::mul(V::load(outputs + h * padded + c), V::set1(factors[h]));
    for (int t = first; t < count; ++t) {
      const V v = V::load(v_block + t * padded + c);
      for (int h = 0; h < H; ++h) sum[h] = V::fma(V::set1(weights[h * 32 + t]), v, sum[h]);
    }
    for (int h = 0; h < H; ++h) V::store(outputs + h * padded + c, sum[h]);
  }
}

// H query heads of one row over the positions that it sees; queries and outputs [H][padded].
template <int H>
static inline void attend_heads(const AttentionArgs& args, const Span& span, Visible visible, int64_t kv_head,
                                const float* queries, float* outputs, float* weights) {
  const int64_t padded = padded_width(args.head_dim);
  HeadState states[H];
  float factors[H];
  for (int h = 0; h < H; ++h) states[h] = {-__builtin_inff(), 0.0f};
  __builtin_memset(outputs, 0, static_cast<size_t>(H * padded) * sizeof(float));
  for (int64_t block = visible.begin / kBlockTokens; block * kBlockTokens < visible.end; ++block) {
    const auto [first, count] = range_in_block(visible, block * kBlockTokens);
    const float* k_block = head_block(args, span, block, kv_head);
    score_block<H>(queries, k_block, args, first, count, states, weights, factors);
    add_values<H>(k_block + kBlockTokens * args.head_dim, padded, first, count, weights, factors, outputs);
  }
  for (int h = 0; h < H; ++h)
    for (int64_t c = 0; c < padded; c += 16)
      V::store(outputs + h * padded + c, V::div(V::load(outputs + h * padded + c), V::set1(states[h].sum)));
}

static void attend(const AttentionArgs& args, const Span& span, int64_t begin, int64_t end, int64_t kv_head,
                   uint8_t* scratch) {
  const int64_t padded = padded_width(args.head_dim), group = args.num_heads / args.num_kv_heads;
  float* queries = reinterpret_cast<float*>(scratch);
  float* outputs = queries + kHeadBlock * padded;
  float* weights = outputs + kHeadBlock * padded;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t position = span.position + (row - span.row_start);
    for (int64_t first = 0; first < group;) {
      const int64_t count = group - first >= kHeadBlock ? kHeadBlock : 1;
      const int64_t head = kv_head * group + first;
      for (int64_t h = 0; h < count; ++h) {
        const float* query = args.query.row(row) + (head + h) * args.head_dim;
        if (args.rotary.dims)
          rotate_head(query, queries + h * padded, args.rotary, position, args.head_dim);
        else
          __builtin_memcpy(queries + h * padded, query, static_cast<size_t>(args.head_dim) * sizeof(float));
      }
      const Visible visible = visible_to(args, span, position);
      if (count == kHeadBlock)
        attend_heads<kHeadBlock>(args, span, visible, kv_head, queries, outputs, weights);
      else
        attend_heads<1>(args, span, visible, kv_head, queries, outputs, weights);
      for (int64_t h = 0; h < count; ++h)
        __builtin_memcpy(args.output.row(row) + (head + h) * args.head_dim, outputs + h * padded,
                         static_cast<size_t>(args.head_dim) * sizeof(float));
      first += count;
    }
  }
}
