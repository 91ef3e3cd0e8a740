// Attention in float32 over keys and values that are stored as attention_cache.inl.h says; included by
// f32_kernels.inl.h.
//
// Parts of kPartTokens positions, by their absolute number, have a softmax of their own and are merged in their order
// (flash attention with split keys, Dao 2023, arXiv 2307.08691). Within a part, every score is one chain of
// multiply-adds over the channels, every output one chain over the positions that the row sees, so a row comes out the
// same beside any others. Factors of codes are multiplied to the sums of scores and to the weights. The queries of a
// batch, pairs of a row and a head of one group, share what is loaded of K and V.
//
// The including file defines kScoreQueries by kScoreVectors and kValueQueries by kValueVectors: the accumulators that
// it has registers for.

constexpr int64_t kBatchQueries = 144;  // enough to make expanding K and V cheap; their scores of a part are 96 KB
constexpr float kLog2E = 1.44269504f;

static int64_t attend_rows(int64_t group) { return group < kBatchQueries ? kBatchQueries / group : 1; }

// Floats of what a query has of a part, or of all parts so far: outputs, the largest score and the sum of weights.
static int64_t part_floats(int64_t head_dim) { return value_width(head_dim) + 16; }

// --- a batch of queries ---------------------------------------------------------------------------------------------

template <class Kv>
struct QueryBatch {
  using Code = typename Kv::Code;

  const AttentionArgs& args;
  const Span& span;
  int64_t kv_head;
  int64_t count = 0;
  float* queries;   // [count / kScoreQueries][head_dim][kScoreQueries], times the scale
  float* scores;    // [count][kPartTokens], then the weights
  float* part;      // [count][part_floats]
  float* total;     // [count][part_floats]
  float* expanded;  // keys or values of a block
  float* factors;   // [kPartTokens], of the values of a part
  float* origin;    // [value_width], of a block
  float* shifts;    // [count], products with it
  float* plain;     // [count][value_width], the queries once more
  Visible visible[kBatchQueries];

  QueryBatch(const AttentionArgs& attention, const Span& rows, int64_t head, uint8_t* scratch)
      : args(attention), span(rows), kv_head(head) {
    constexpr int64_t padded = (kBatchQueries + kScoreQueries - 1) / kScoreQueries * kScoreQueries;
    queries = reinterpret_cast<float*>(scratch);
    scores = queries + padded * args.head_dim;
    part = scores + padded * kPartTokens;
    total = part + kBatchQueries * part_floats(args.head_dim);
    expanded = total + kBatchQueries * part_floats(args.head_dim);
    factors = expanded + kBlockTokens * value_width(args.head_dim);
    origin = factors + kPartTokens;
    shifts = origin + value_width(args.head_dim);
    plain = shifts + padded;
  }
  HeadBlock<Kv> block(int64_t index) const { return head_block<Kv>(args, span, index, kv_head); }
  const Code* keys(int64_t index) const { return block(index).keys(); }
  // Those `distance` positions ahead, or the last ones.
  const Code* keys_ahead(int64_t start, int64_t distance) const {
    const int64_t last = visible[count - 1].end - 1;
    return keys((start + distance < last ? start + distance : last) / kBlockTokens);
  }
  const Code* values(int64_t index) const { return block(index).values(); }
  // Whether all queries are held in registers at once: then keys and values are read where they are stored.
  bool is_small() const { return count <= kScoreQueries; }
};

static int64_t attend_scratch_bytes(int64_t head_dim) {
  const int64_t queries = kBatchQueries + kScoreQueries;
  const int64_t floats = queries * (head_dim + kPartTokens + 2 * part_floats(head_dim) + 1 + value_width(head_dim)) +
                         (kBlockTokens + 1) * value_width(head_dim) + kPartTokens;
  return floats * static_cast<int64_t>(sizeof(float));
}

// A query as it meets keys in codes: rotated and multiplied, with zeros up to a multiple of 16.
static inline const float* load_row(const float* query, int64_t head_dim, float factor, float* row) {
  for (int64_t c = 0; c < head_dim; c += 16) V::store(row + c, load_lanes(query + c, head_dim - c));
  rotate(row, head_dim);
  for (int64_t c = 0; c < head_dim; c += 16) V::store(row + c, V::mul(V::load(row + c), V::set1(factor)));
  return row;
}

// The queries [first, first + count) of a piece of work, counted row by row.
template <class Kv>
static inline void load_queries(QueryBatch<Kv>& batch, int64_t begin, int64_t first, int64_t count) {
  const AttentionArgs& args = batch.args;
  const int64_t group = args.num_heads / args.num_kv_heads, head_dim = args.head_dim;
  float factor = args.softcap > 0.0f ? args.scale : args.scale * kLog2E;
  if constexpr (Kv::kIsScaled) factor /= Rotation(head_dim).factor();
  batch.count = count;
  for (int64_t q = 0; q < count; ++q) {
    const int64_t row = begin + (first + q) / group, position = batch.span.position + (row - batch.span.row_start);
    const float* query = args.query.row(row) + (batch.kv_head * group + (first + q) % group) * head_dim;
    if (args.rotary.dims) {
      rotate_head(query, batch.expanded, args.rotary, position, head_dim);
      query = batch.expanded;
    }
    if constexpr (Kv::kIsScaled) query = load_row(query, head_dim, factor, batch.plain + q * value_width(head_dim));
    float* out = batch.queries + q / kScoreQueries * kScoreQueries * head_dim + q % kScoreQueries;
    for (int64_t c = 0; c < head_dim; ++c) out[c * kScoreQueries] = Kv::kIsScaled ? query[c] : query[c] * factor;
    batch.visible[q] = visible_to(args, batch.span, position);
  }
}

static inline Visible overlap(Visible visible, int64_t start, int64_t count) {
  return {visible.begin > start ? visible.begin : start, visible.end < start + count ? visible.end : start + count};
}

// The positions of [start, start + count) that any of these queries sees; later rows see no earlier positions.
template <class Kv>
static inline Visible seen_by(const QueryBatch<Kv>& batch, int64_t first, int64_t end, int64_t start, int64_t count) {
  return overlap({batch.visible[first].begin, batch.visible[end - 1].end}, start, count);
}

// --- scores and weights ---------------------------------------------------------------------------------------------

template <int N, class F>
static inline void with_count(int64_t count, F f) {
  if constexpr (N > 1)
    if (count < N) return with_count<N - 1>(count, f);
  f.template operator()<N>();
}

template <class Code>
static inline const float* expand(const Code* stored, int64_t count, float* expanded) {
  for (int64_t i = 0; i < count; i += 16) V::store(expanded + i, read(stored + i));
  return expanded;
}

// What codes of keys stand for: their products times the factors [32] of the positions, plus the shift of each query.
// Null where keys are numbers.
struct Scaling {
  const float* factors;
  const float* shifts;
};

// Products of N queries [head_dim][kScoreQueries] with the keys [head_dim][32] of a block. What is needed next is
// fetched line by line: a processor drops requests that come all at once.
template <int N, class T, class Code>
static inline void score_tile(const float* queries, const T* keys, Scaling scaling, int64_t head_dim, float* scores,
                              const Code* values, const Code* next_keys) {
  for (int at = 0; at < kBlockTokens; at += 16 * kScoreVectors) {
    V sums[N][kScoreVectors];
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < kScoreVectors; ++v) sums[n][v] = V::set1(0.0f);
    for (int64_t c = 0; c < head_dim; ++c) {
      __builtin_prefetch(values + c * kBlockTokens);
      __builtin_prefetch(next_keys + c * kBlockTokens);
      V key[kScoreVectors];
      for (int v = 0; v < kScoreVectors; ++v) key[v] = read(keys + c * kBlockTokens + at + 16 * v);
      for (int n = 0; n < N; ++n) {
        const V query = V::set1(queries[c * kScoreQueries + n]);
        for (int v = 0; v < kScoreVectors; ++v) sums[n][v] = V::fma(query, key[v], sums[n][v]);
      }
    }
    for (int v = 0; v < kScoreVectors; ++v)
      for (int n = 0; n < N; ++n) {
        V score = sums[n][v];
        if (scaling.factors) score = V::fma(score, V::load(scaling.factors + at + 16 * v), V::set1(scaling.shifts[n]));
        V::store(scores + n * kPartTokens + at + 16 * v, score);
      }
  }
}

// Products of all queries with the origin of a block.
template <class Kv>
static inline void shift_queries(const QueryBatch<Kv>& batch, const HeadBlock<Kv>& block) {
  const int64_t width = value_width(batch.args.head_dim);
  const float* origin = expand(block.origin(), width, batch.origin);
  for (int64_t q = 0; q < batch.count; ++q) {
    V sum = V::set1(0.0f);
    for (int64_t c = 0; c < width; c += 16)
      sum = V::fma(V::load(batch.plain + q * width + c), V::load(origin + c), sum);
    batch.shifts[q] = V::sum(sum);
  }
}

template <class Kv, class T>
static inline void score_block(const QueryBatch<Kv>& batch, const T* keys, int64_t start, float* scores) {
  const HeadBlock<Kv> block = batch.block(start / kBlockTokens);
  if constexpr (Kv::kIsScaled) shift_queries(batch, block);
  const auto* next_keys = batch.keys_ahead(start, kBlockTokens);
  for (int64_t first = 0; first < batch.count; first += kScoreQueries) {
    const int64_t count = batch.count - first < kScoreQueries ? batch.count - first : kScoreQueries;
    const Visible seen = seen_by(batch, first, first + count, start, kBlockTokens);
    if (seen.begin >= seen.end) continue;
    with_count<kScoreQueries>(count, [&]<int N>() {
      const Scaling scaling = Kv::kIsScaled ? Scaling{block.key_factors(), batch.shifts + first} : Scaling{};
      score_tile<N>(batch.queries + first * batch.args.head_dim, keys, scaling, batch.args.head_dim,
                    scores + first * kPartTokens, block.values(), next_keys);
    });
  }
}

// 2 ** x for x <= 0, at least 2 ** -100; relative error under 2e-7, exact for 0. Adding 1.5 * 2 ** 23 + 127 rounds to
// an integer and leaves the power's exponent in the lowest bits. The operands' order lets NaN through.
static inline V exp2_v(V x) {
  constexpr float kRound = 12583039.0f;
  x = V::max(V::set1(-100.0f), x);
  const V biased = V::add(x, V::set1(kRound));
  const V r = V::sub(x, V::sub(biased, V::set1(kRound)));
  V p = V::set1(1.326472e-3f);
  p = V::fma(p, r, V::set1(9.671513e-3f));
  p = V::fma(p, r, V::set1(5.550734e-2f));
  p = V::fma(p, r, V::set1(2.4022242e-1f));
  p = V::fma(p, r, V::set1(6.9314700e-1f));
  p = V::fma(p, r, V::set1(1.0f));
  return V::mul(p, V::to_exponent(biased));
}

static inline float exp2_of(float x) { return V::first(exp2_v(V::set1(x))); }

static inline V keep_seen(V v, Visible seen, int64_t at, float other) {
  if (seen.begin <= at && seen.end >= at + 16) return v;
  return keep_range(v, static_cast<int>(seen.begin - at), static_cast<int>(seen.end - at), other);
}

// Scores of one query become weights; `seen` are positions within the part. What is kept are weights times `factors`,
// which are null where values have none.
static inline void weigh(const AttentionArgs& args, Visible seen, const float* factors, float* scores, float& maximum,
                         float& sum) {
  const int64_t begin = seen.begin / 16 * 16;
  V largest = V::set1(-__builtin_inff()), sums = V::set1(0.0f);
  for (int64_t at = begin; at < seen.end; at += 16) {
    V score = V::load(scores + at);
    if (args.softcap > 0.0f) {
      score = V::mul(softcap_v(score, V::set1(args.softcap)), V::set1(kLog2E));
      V::store(scores + at, score);
    }
    largest = V::max(largest, keep_seen(score, seen, at, -__builtin_inff()));
  }
  maximum = V::largest(largest);
  for (int64_t at = begin; at < seen.end; at += 16) {
    const V weight = keep_seen(exp2_v(V::sub(V::load(scores + at), V::set1(maximum))), seen, at, 0.0f);
    V::store(scores + at, factors ? V::mul(weight, V::load(factors + at)) : weight);
    sums = V::add(sums, weight);
  }
  sum = V::sum(sums);
}

// --- outputs --------------------------------------------------------------------------------------------------------

// Adds positions [begin, end) of values [32][width] times their weights, N queries by W vectors of channels.
template <int N, int W, class T, class Code>
static inline void value_tile(const float* weights, const T* values, int64_t width, Visible seen, float* outputs,
                              int64_t stride, const Code* next_keys) {
  V sums[N][W];
  for (int n = 0; n < N; ++n)
    for (int w = 0; w < W; ++w) sums[n][w] = V::load(outputs + n * stride + 16 * w);
  int64_t t = seen.begin;
  do {
    for (int w = 0; w < W; w += 2) __builtin_prefetch(next_keys + t * width + 16 * w);
    V value[W];
    for (int w = 0; w < W; ++w) value[w] = read(values + t * width + 16 * w);
    for (int n = 0; n < N; ++n) {
      const V weight = V::set1(weights[n * kPartTokens + t]);
      for (int w = 0; w < W; ++w) sums[n][w] = V::fma(weight, value[w], sums[n][w]);
    }
  } while (++t < seen.end);
  for (int n = 0; n < N; ++n)
    for (int w = 0; w < W; ++w) V::store(outputs + n * stride + 16 * w, sums[n][w]);
}

template <int N, class T, class Code>
static inline void value_rows(const float* weights, const T* values, int64_t width, Visible seen, float* outputs,
                              const Code* next_keys) {
  const int64_t stride = width + 16;
  int64_t c = 0;
  for (; c + 16 * kValueVectors <= width; c += 16 * kValueVectors)
    value_tile<N, kValueVectors>(weights, values + c, width, seen, outputs + c, stride, next_keys + c);
  for (; c < width; c += 16) value_tile<N, 1>(weights, values + c, width, seen, outputs + c, stride, next_keys + c);
}

// Positions that only some of N queries see are added for each alone, before and after those that all see.
template <int N, class Kv, class T>
static inline void value_queries(const QueryBatch<Kv>& batch, int64_t first, const T* values, int64_t start,
                                 const float* weights) {
  const int64_t width = value_width(batch.args.head_dim), stride = part_floats(batch.args.head_dim);
  float* outputs = batch.part + first * stride;
  const auto* next_keys = batch.keys_ahead(start, kPartTokens);
  if (batch.visible[first + N - 1].begin <= start && batch.visible[first].end >= start + kBlockTokens)
    return value_rows<N>(weights, values, width, {0, kBlockTokens}, outputs, next_keys);
  Visible seen[N], all{0, kBlockTokens};
  for (int n = 0; n < N; ++n) {
    const Visible own = overlap(batch.visible[first + n], start, kBlockTokens);
    seen[n] = {own.begin - start, own.end - start};
    all = {seen[n].begin > all.begin ? seen[n].begin : all.begin, seen[n].end < all.end ? seen[n].end : all.end};
  }
  if (all.begin > all.end) all.end = all.begin;
  const auto alone = [&](int n, int64_t begin, int64_t end) {
    if (begin < end)
      value_rows<1>(weights + n * kPartTokens, values, width, {begin, end}, outputs + n * stride, next_keys);
  };
  for (int n = 0; n < N; ++n) alone(n, seen[n].begin, seen[n].end < all.begin ? seen[n].end : all.begin);
  if (all.begin < all.end) value_rows<N>(weights, values, width, all, outputs, next_keys);
  for (int n = 0; n < N; ++n) alone(n, seen[n].begin > all.end ? seen[n].begin : all.end, seen[n].end);
}

template <class Kv, class T>
static inline void value_block(const QueryBatch<Kv>& batch, const T* values, int64_t start, const float* weights) {
  for (int64_t first = 0; first < batch.count; first += kValueQueries) {
    const int64_t count = batch.count - first < kValueQueries ? batch.count - first : kValueQueries;
    with_count<kValueQueries>(
        count, [&]<int N>() { value_queries<N>(batch, first, values, start, weights + first * kPartTokens); });
  }
}

// --- parts ----------------------------------------------------------------------------------------------------------

// Fills batch.part for the part at `start`; queries that see nothing of it keep a sum of 0.
template <class Kv>
static inline void attend_to_part(const QueryBatch<Kv>& batch, int64_t start) {
  const int64_t head_dim = batch.args.head_dim, width = value_width(head_dim), stride = part_floats(head_dim);
  const Visible seen = seen_by(batch, 0, batch.count, start, kPartTokens);
  const int64_t first_block = seen.begin / kBlockTokens * kBlockTokens;
  for (int64_t at = first_block; at < seen.end; at += kBlockTokens) {
    const auto* keys = batch.keys(at / kBlockTokens);
    float* scores = batch.scores + (at - start);
    if constexpr (Kv::kIsScaled)
      __builtin_memcpy(batch.factors + (at - start), batch.block(at / kBlockTokens).value_factors(),
                       kBlockTokens * sizeof(float));
    if (batch.is_small())
      score_block(batch, keys, at, scores);
    else
      score_block(batch, expand(keys, kBlockTokens * head_dim, batch.expanded), at, scores);
  }
  __builtin_memset(batch.part, 0, static_cast<size_t>(batch.count * stride) * sizeof(float));
  for (int64_t q = 0; q < batch.count; ++q) {
    const Visible own = overlap(batch.visible[q], start, kPartTokens);
    float* state = batch.part + q * stride + width;
    if (own.begin < own.end)
      weigh(batch.args, {own.begin - start, own.end - start}, Kv::kIsScaled ? batch.factors : nullptr,
            batch.scores + q * kPartTokens, state[0], state[1]);
  }
  for (int64_t at = first_block; at < seen.end; at += kBlockTokens) {
    const auto* values = batch.values(at / kBlockTokens);
    const float* weights = batch.scores + (at - start);
    if (batch.is_small())
      value_block(batch, values, at, weights);
    else
      value_block(batch, expand(values, kBlockTokens * width, batch.expanded), at, weights);
  }
}

// Adds the part at `start` to what a query has of those before it.
static inline void merge_part(Visible visible, int64_t start, const float* part, float* total, int64_t width) {
  if (visible.begin >= start + kPartTokens || visible.end <= start) return;
  if (visible.begin >= start) {
    __builtin_memcpy(total, part, static_cast<size_t>(width + 2) * sizeof(float));
    return;
  }
  const float before = total[width], own = part[width], maximum = before > own ? before : own;
  const float kept = exp2_of(before - maximum), added = exp2_of(own - maximum);
  for (int64_t c = 0; c < width; c += 16)
    V::store(total + c, V::fma(V::load(part + c), V::set1(added), V::mul(V::load(total + c), V::set1(kept))));
  total[width] = maximum;
  total[width + 1] = total[width + 1] * kept + part[width + 1] * added;
}

static inline void store_output(const AttentionArgs& args, int64_t row, int64_t head, const float* total) {
  float* output = args.output.row(row) + head * args.head_dim;
  const V sum = V::set1(total[value_width(args.head_dim) + 1]);
  for (int64_t c = 0; c < args.head_dim; c += 16)
    store_lanes(output + c, V::div(V::load(total + c), sum), args.head_dim - c);
}

// Calls visit(batch, first) for the queries of a piece of work, as many as a batch holds at a time.
template <class Kv, class Visit>
static inline void each_batch(const AttentionArgs& args, const Span& span, int64_t begin, int64_t end, int64_t kv_head,
                              uint8_t* scratch, Visit visit) {
  const int64_t num_queries = (end - begin) * (args.num_heads / args.num_kv_heads);
  QueryBatch<Kv> batch(args, span, kv_head, scratch);
  for (int64_t first = 0; first < num_queries; first += kBatchQueries) {
    const int64_t left = num_queries - first;
    load_queries(batch, begin, first, left < kBatchQueries ? left : kBatchQueries);
    visit(batch, first);
  }
}

template <class Kv>
static void attend(const AttentionArgs& args, const Span& span, int64_t begin, int64_t end, int64_t kv_head,
                   uint8_t* scratch) {
  const int64_t group = args.num_heads / args.num_kv_heads, stride = part_floats(args.head_dim);
  const int64_t width = value_width(args.head_dim);
  each_batch<Kv>(args, span, begin, end, kv_head, scratch, [&](const QueryBatch<Kv>& batch, int64_t first) {
    const Visible seen{batch.visible[0].begin, batch.visible[batch.count - 1].end};
    for (int64_t start = seen.begin / kPartTokens * kPartTokens; start < seen.end; start += kPartTokens) {
      attend_to_part(batch, start);
      for (int64_t q = 0; q < batch.count; ++q)
        merge_part(batch.visible[q], start, batch.part + q * stride, batch.total + q * stride, width);
    }
    for (int64_t q = 0; q < batch.count; ++q)
      store_output(args, begin + (first + q) / group, kv_head * group + (first + q) % group, batch.total + q * stride);
  });
}

template <class Kv>
static void attend_part(const AttentionArgs& args, const Span& span, int64_t begin, int64_t end, int64_t kv_head,
                        int64_t part, float* result, uint8_t* scratch) {
  const int64_t start = part * kPartTokens;
  each_batch<Kv>(args, span, begin, end, kv_head, scratch, [&](QueryBatch<Kv>& batch, int64_t first) {
    const Visible seen = seen_by(batch, 0, batch.count, start, kPartTokens);
    if (seen.begin >= seen.end) return;
    batch.part = result + first * part_floats(args.head_dim);
    attend_to_part(batch, start);
  });
}

static void merge_parts(const AttentionArgs& args, const Span& span, int64_t begin, int64_t end, int64_t kv_head,
                        const float* parts, int64_t part_stride, uint8_t* scratch) {
  const int64_t group = args.num_heads / args.num_kv_heads, stride = part_floats(args.head_dim);
  float* total = reinterpret_cast<float*>(scratch);
  for (int64_t row = begin; row < end; ++row) {
    const Visible visible = visible_to(args, span, span.position + (row - span.row_start));
    for (int64_t h = 0; h < group; ++h) {
      const float* own = parts + ((row - begin) * group + h) * stride;
      for (int64_t part = visible.begin / kPartTokens; part * kPartTokens < visible.end; ++part)
        merge_part(visible, part * kPartTokens, own + part * part_stride, total, value_width(args.head_dim));
      store_output(args, row, kv_head * group + h, total);
    }
  }
}

template <class Kv>
static constexpr AttentionKernels attention_kernels() {
  return {.kv_type = Kv::kName,
          .head_bytes = head_bytes<Kv>,
          .store_kv = store_kv<Kv>,
          .attend = attend<Kv>,
          .attend_rows = attend_rows,
          .attend_part = attend_part<Kv>,
          .merge_parts = merge_parts,
          .part_floats = part_floats};
}
