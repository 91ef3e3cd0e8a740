// Linears of unquantized weights, dense and without their zeros, multiplied as float32; included by i16_linear.inl.h.
//
// Products of sixteen inputs at a time are added to sixteen sums of an output, which are added up at the end. A weight
// that is not stored is multiplied as zero, so that dense and sparse weights give the same bits.

// sums[r][c] = activations row r . weights row c, float32, R rows by C columns at once.
template <int R, int C>
static inline void dot_floats(const float* a, const float* w, int64_t width, float* sums) {
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

// One row by all of a dense panel, some tiles at a time: they stay in the first-level cache while four outputs after
// four meet them. The order of additions is that of dot_floats.
template <Format F>
static void dot_dense_panel(const uint8_t* panel, const Activations& x, float* sums) {
  constexpr FormatInfo info = format_info(F);
  constexpr int kOutputs = 4;
  constexpr int64_t kTiles = 8192 / info.tile_bytes;
  float lanes[kPanelOutputs * 16] = {};
  for (int64_t begin = 0; begin < x.num_tiles; begin += kTiles) {
    const int64_t end = begin + kTiles < x.num_tiles ? begin + kTiles : x.num_tiles;
    for (int n = 0; n < kPanelOutputs; n += kOutputs) {
      V acc[kOutputs];
      for (int i = 0; i < kOutputs; ++i) acc[i] = V::load(lanes + 16 * (n + i));
      for (int64_t t = begin; t < end; ++t) {
        const uint8_t* tile = panel + t * info.tile_bytes;
        for (int64_t at = info.codes_at(n); at < info.codes_at(n + kOutputs); at += 64) prefetch_far(tile + at);
        for (int half = 0; half < 2; ++half) {
          const V a = V::load(x.floats(0) + t * kTileInputs + 16 * half);
          for (int i = 0; i < kOutputs; ++i) acc[i] = V::fma(a, read_codes<F>(tile, n + i, half), acc[i]);
        }
      }
      for (int i = 0; i < kOutputs; ++i) V::store(lanes + 16 * (n + i), acc[i]);
    }
  }
  for (int n = 0; n < kPanelOutputs; ++n) sums[n] = V::sum(V::load(lanes + 16 * n));
}

// Sixteen inputs of a sparse row, some of whose weights are at `weights`, which goes on to the next ones.
static inline V next_sixteen(const uint8_t*& weights, uint32_t mask) {
  const V v = expand_halves(weights, mask);
  weights += 2 * __builtin_popcount(mask);
  return v;
}

// One row by R outputs of a sparse panel from output n on.
template <int R>
static inline void dot_sparse_rows(const SparsePanel& panel, int n, const float* a, float* sums) {
  V acc[R];
  const uint8_t *masks[R], *weights[R];
  for (int r = 0; r < R; ++r) {
    acc[r] = V::set1(0.0f);
    masks[r] = panel.masks(n + r);
    weights[r] = panel.weights(n + r);
    for (int64_t at = 0; at < 4 * panel.num_tiles; at += 64) prefetch_far(masks[r] + at);
  }
  for (int64_t t = 0; t < panel.num_tiles; ++t, a += kTileInputs)
    for (int r = 0; r < R; ++r) {
      const uint32_t mask = mask_at(masks[r], t);
      prefetch_far(weights[r]);
      acc[r] = V::fma(V::load(a), next_sixteen(weights[r], mask & 0xffff), acc[r]);
      acc[r] = V::fma(V::load(a + 16), next_sixteen(weights[r], mask >> 16), acc[r]);
    }
  for (int r = 0; r < R; ++r) sums[n + r] = V::sum(acc[r]);
}

static void dot_sparse_panel(const uint8_t* panel, const Activations& x, float* sums) {
  for (int n = 0; n < kPanelOutputs; n += 2) dot_sparse_rows<2>({panel, x.num_tiles}, n, x.floats(0), sums);
}

// Of an unpacked panel of unquantized weights.
static int64_t unpacked_bytes(int64_t width) { return 16 * width * static_cast<int64_t>(sizeof(float)); }

template <Format F>
static void unpack_floats(const PackedWeight& weight, int64_t panel, uint8_t* memory) {
  unpack_rows<F>(weight, panel, 0, 16, reinterpret_cast<float*>(memory));
}

// Rows [begin, end) of a panel of a sparse weight as float32 [end - begin][num_tiles * 32].
static void unpack_sparse_rows(const PackedWeight& weight, int64_t index, int begin, int end, float* output) {
  const SparsePanel panel{weight.panel(index), weight.num_tiles()};
  for (int n = begin; n < end; ++n) {
    const uint8_t* weights = panel.weights(n);
    for (int64_t t = 0; t < panel.num_tiles; ++t, output += kTileInputs) {
      const uint32_t mask = mask_at(panel.masks(n), t);
      V::store(output, next_sixteen(weights, mask & 0xffff));
      V::store(output + 16, next_sixteen(weights, mask >> 16));
    }
  }
}

static void unpack_sparse(const PackedWeight& weight, int64_t panel, uint8_t* memory) {
  unpack_sparse_rows(weight, panel, 0, 16, reinterpret_cast<float*>(memory));
}

// sums [count][16] = rows [row, row + count) by an unpacked panel.
static void dot_float_rows(const float* w, const Activations& x, int64_t row, int64_t count, float* sums) {
  const int64_t width = x.num_tiles * kTileInputs;
  for (int c = 0; c < 16; c += kColumnBlock) {
    int64_t r = 0;
    for (; r + kFloatRows <= count; r += kFloatRows)
      dot_floats<kFloatRows, kColumnBlock>(x.floats(row + r), w + c * width, width, sums + 16 * r + c);
    for (; r < count; ++r) dot_floats<1, kColumnBlock>(x.floats(row + r), w + c * width, width, sums + 16 * r + c);
  }
}
