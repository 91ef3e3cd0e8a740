// Attention in bf16 arithmetic: Q K^T and P V in tiles, softmax in float32, for one row as for many.
//
// A block of 32 positions of one head is K [2][d/2][16 positions][2] then V [d/16][16 position pairs][16][2], bfloat16,
// d = head_dim padded to 32. The rows of a tile are (row, query head) pairs that share one key/value head. Blocks are
// walked in order with a running maximum; masked positions add exact zeros (finite values given) and a factor of
// exactly one, so a row's result does not depend on the rows beside it.

#include "amx.h"

namespace subsecond::amx {
namespace {

#include "../avx512/vector.inl.h"
#include "../elementwise.inl.h"

constexpr int kQueries = 16;  // (row, head) pairs of a tile

int64_t heads_of_tile(int64_t group) { return group < kQueries ? group : kQueries; }

inline __m512i round_pair(__m512 low, __m512 high) { return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)); }

inline uint8_t* head_block(const AttentionArgs& args, const Span& span, int64_t block, int64_t kv_head) {
  return args.cache.data + (span.blocks[block] * args.num_kv_heads + kv_head) * args.cache.head_bytes;
}

// The work of one tile: queries [d/32][16][32] bf16, scores [16][32], weights [16][32] bf16, outputs [16][d].
struct TileWork {
  uint16_t* queries;
  float* scores;
  uint16_t* weights;
  float* outputs;
  float maximum[kQueries];
  float sum[kQueries];
  Visible visible[kQueries];
  int count;
};

void load_queries(const AttentionArgs& args, const Span& span, int64_t begin, int64_t end, int64_t first_head,
                  int64_t num_heads, int64_t padded, TileWork& work) {
  alignas(64) float rotated[1024];
  work.count = 0;
  for (int64_t row = begin; row < end; ++row)
    for (int64_t h = first_head; h < first_head + num_heads; ++h, ++work.count) {
      const int64_t position = span.position + (row - span.row_start);
      const float* query = args.query.row(row) + h * args.head_dim;
      if (args.rotary.dims)
        rotate_head(query, rotated, args.rotary, position, args.head_dim);
      else
        __builtin_memcpy(rotated, query, static_cast<size_t>(args.head_dim) * sizeof(float));
      for (int64_t c = args.head_dim; c < padded; ++c) rotated[c] = 0.0f;
      for (int64_t c = 0; c < padded; c += 32)
        _mm512_store_si512(work.queries + c * kQueries + work.count * 32,
                           round_pair(_mm512_load_ps(rotated + c), _mm512_load_ps(rotated + c + 16)));
      work.visible[work.count] = visible_to(args, span, position);
      work.maximum[work.count] = -__builtin_inff();
      work.sum[work.count] = 0.0f;
    }
}

// Numerators of the softmax of one query against a block of which it sees a range; rescales what it has.
inline void weigh(const AttentionArgs& args, TileWork& work, int query, BlockRange range, int64_t padded) {
  const auto [first, count] = range;
  float* scores = work.scores + 32 * query;
  const V s0 = mask_scores(cap_scores(V::load(scores), args.scale, args.softcap), first, count);
  const V s1 = mask_scores(cap_scores(V::load(scores + 16), args.scale, args.softcap), first - 16, count - 16);
  const float block_maximum = V::largest(V::max(s0, s1)), before = work.maximum[query];
  const float maximum = before > block_maximum ? before : block_maximum;
  const V p0 = keep_range(exp_v(V::sub(s0, V::set1(maximum))), first, count, 0.0f);
  const V p1 = keep_range(exp_v(V::sub(s1, V::set1(maximum))), first - 16, count - 16, 0.0f);
  const __m512i rounded = round_pair(p0.v, p1.v);
  _mm512_store_si512(work.weights + 32 * query, rounded);
  const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(rounded, 16));
  const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  const float block_sum = V::sum({_mm512_add_ps(even, odd)});
  if (maximum != before) {
    const V factor = exp_v(V::set1(before - maximum));
    work.sum[query] *= V::first(factor);
    work.maximum[query] = maximum;
    float* output = work.outputs + query * padded;
    for (int64_t c = 0; c < padded; c += 16) V::store(output + c, V::mul(V::load(output + c), factor));
  }
  work.sum[query] += block_sum;
}

void attend_block(const AttentionArgs& args, const uint8_t* block, int64_t first_position, int64_t padded,
                  TileWork& work) {
  before_tile_loads();
  for (int half = 0; half < 2; ++half) {
    _tile_zero(0);
    for (int64_t c = 0; c < padded; c += 32) {
      _tile_loadd(1, work.queries + c * kQueries, 64);
      _tile_loadd(2, block + half * padded * 32 + c * 32, 64);
      _tile_dpbf16ps(0, 1, 2);
    }
    _tile_stored(0, work.scores + 16 * half, 128);
  }
  for (int q = 0; q < work.count; ++q) {
    const BlockRange range = range_in_block(work.visible[q], first_position);
    if (range.first < range.count)
      weigh(args, work, q, range, padded);
    else
      _mm512_store_si512(work.weights + 32 * q, _mm512_setzero_si512());
  }
  const uint8_t* values = block + padded * 64;
  before_tile_loads();
  _tile_loadd(3, work.weights, 64);
  for (int64_t c = 0; c < padded; c += 16) {
    _tile_loadd(4, work.outputs + c, padded * 4);
    _tile_loadd(5, values + c * 64, 64);
    _tile_dpbf16ps(4, 3, 5);
    _tile_stored(4, work.outputs + c, padded * 4);
  }
}

void store_outputs(const AttentionArgs& args, int64_t begin, int64_t first_head, int64_t num_heads, int64_t padded,
                   const TileWork& work) {
  for (int q = 0; q < work.count; ++q) {
    float* output = args.output.row(begin + q / num_heads) + (first_head + q % num_heads) * args.head_dim;
    for (int64_t c = 0; c < args.head_dim; c += 16) {
      const V value = V::div(V::load(work.outputs + q * padded + c), V::set1(work.sum[q]));
      store_lanes(output + c, value, args.head_dim - c);
    }
  }
}

}  // namespace

int64_t head_bytes(int64_t head_dim) { return padded_width(head_dim) * kBlockTokens * 4; }

int64_t attend_rows(int64_t group) { return kQueries / heads_of_tile(group); }

int64_t attend_scratch_bytes(int64_t head_dim) {
  const int64_t padded = padded_width(head_dim);
  return kQueries * (padded * 2 + 32 * 4 + 32 * 2 + padded * 4);
}

void store_kv(const AttentionArgs& args, const Span& span, int64_t begin, int64_t end, int64_t kv_head,
              uint8_t* scratch) {
  const int64_t padded = padded_width(args.head_dim);
  float* rotated = reinterpret_cast<float*>(scratch);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t position = span.position + (row - span.row_start), slot = position % kBlockTokens;
    uint8_t* block = head_block(args, span, position / kBlockTokens, kv_head);
    if (slot == 0) __builtin_memset(block, 0, static_cast<size_t>(args.cache.head_bytes));
    const float* key = args.key.row(row) + kv_head * args.head_dim;
    const float* value = args.value.row(row) + kv_head * args.head_dim;
    if (args.rotary.dims) {
      rotate_head(key, rotated, args.rotary, position, args.head_dim);
      key = rotated;
    }
    uint32_t* keys = reinterpret_cast<uint32_t*>(block) + slot / 16 * padded * 8 + slot % 16;
    uint16_t* values = reinterpret_cast<uint16_t*>(block + padded * 64) + slot / 2 * 32 + slot % 2;
    for (int64_t c = 0; c < args.head_dim; c += 32) {
      const int64_t left = args.head_dim - c;
      const V high_key = left > 16 ? load_lanes(key + c + 16, left - 16) : V::set1(0.0f);
      const V high_value = left > 16 ? load_lanes(value + c + 16, left - 16) : V::set1(0.0f);
      alignas(64) uint32_t key_pairs[16];
      alignas(64) uint16_t value_words[32];
      _mm512_store_si512(key_pairs, round_pair(load_lanes(key + c, left).v, high_key.v));
      _mm512_store_si512(value_words, round_pair(load_lanes(value + c, left).v, high_value.v));
      for (int i = 0; i < 16; ++i) keys[(c / 2 + i) * 16] = key_pairs[i];
      for (int i = 0; i < 32; ++i) values[(c + i) / 16 * 512 + (c + i) % 16 * 2] = value_words[i];
    }
  }
}

void attend(const AttentionArgs& args, const Span& span, int64_t begin, int64_t end, int64_t kv_head,
            uint8_t* scratch) {
  const int64_t padded = padded_width(args.head_dim), group = args.num_heads / args.num_kv_heads;
  const int64_t last_position = span.position + (end - 1 - span.row_start);
  const int64_t first_seen = visible_to(args, span, span.position + (begin - span.row_start)).begin;
  const int64_t end_seen = visible_to(args, span, last_position).end;
  TileConfig config;
  for (int tile = 0; tile < 6; ++tile) config.set(tile, 16, 64);
  load_tile_config(config);
  TileWork work;
  work.outputs = reinterpret_cast<float*>(scratch);
  work.scores = work.outputs + kQueries * padded;
  work.queries = reinterpret_cast<uint16_t*>(work.scores + kQueries * 32);
  work.weights = work.queries + kQueries * padded;
  for (int64_t first = 0; first < group; first += kQueries) {
    const int64_t num_heads = heads_of_tile(group - first), first_head = kv_head * group + first;
    __builtin_memset(scratch, 0, static_cast<size_t>(attend_scratch_bytes(args.head_dim)));
    load_queries(args, span, begin, end, first_head, num_heads, padded, work);
    for (int64_t block = first_seen / kBlockTokens; block * kBlockTokens < end_seen; ++block)
      attend_block(args, head_block(args, span, block, kv_head), block * kBlockTokens, padded, work);
    store_outputs(args, begin, first_head, num_heads, padded, work);
  }
  release_tiles();
}

}  // namespace subsecond::amx
