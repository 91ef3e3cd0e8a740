// Linears of F16_LIST weights; included by i16_linear.inl.h.
//
// The products of an output's weights are added to sixteen sums, that of its weight i to sum i % 16, which are added up
// at the end. One row gathers the activations of sixteen weights; several rows are transposed, so that a vector holds
// the activations of sixteen rows for one weight. The additions are the same.

static void dot_list_panel(const uint8_t* data, const Activations& x, float* sums) {
  const ListPanel panel{data};
  for (int n = 0; n < kPanelOutputs; ++n) {
    V acc = V::set1(0.0f);
    const uint8_t* end = panel.group(panel.start(n + 1));
    for (const uint8_t* group = panel.group(panel.start(n)); group < end; group += ListPanel::kGroupBytes) {
      prefetch_far(group);
      acc = V::fma(gather_lanes(x.floats(0), group), codes_f16(group + ListPanel::kWeightsAt), acc);
    }
    sums[n] = V::sum(acc);
  }
}

// Rows [begin, end) of a panel as float32 [end - begin][num_tiles * 32].
static void unpack_list_rows(const PackedWeight& weight, int64_t index, int begin, int end, float* output) {
  const ListPanel panel{weight.panel(index)};
  const int64_t width = weight.num_tiles() * kTileInputs;
  for (int n = begin; n < end; ++n, output += width) {
    __builtin_memset(output, 0, static_cast<size_t>(width) * sizeof(float));
    for (int64_t g = panel.start(n); g < panel.start(n + 1); ++g) {
      float weights[ListPanel::kGroupWeights];
      V::store(weights, codes_f16(panel.group(g) + ListPanel::kWeightsAt));
      for (int i = 0; i < ListPanel::kGroupWeights; ++i)  // a zero fills up, and would cover a weight of input 0
        if (weights[i] != 0.0f) output[half_word(panel.group(g), i)] = weights[i];
    }
  }
}

constexpr int64_t kListRows = 16;  // the lanes of a vector
constexpr int kListSums = 2 * kColumnBlock;

// Memory of several rows: activations [inputs][kListRows], then the weights of an output as float32.
struct ListScratch {
  float* memory;
  int64_t width;

  float* rows() const { return memory; }
  float* weights() const { return memory + kListRows * width; }
  static int64_t num_bytes(int64_t width) {
    return (kListRows + 1) * width * static_cast<int64_t>(sizeof(float)) + ListPanel::kGroupBytes;
  }
};

// Rows [row, row + count) side by side; those that do not exist repeat the first.
static void transpose_rows(const Activations& x, int64_t row, int64_t count, float* out) {
  const int64_t width = x.num_tiles * kTileInputs;
  const float* rows[kListRows];
  for (int64_t r = 0; r < kListRows; ++r) rows[r] = x.floats(row + (r < count ? r : 0));
  alignas(64) float four[4 * kListRows];
  for (int64_t k = 0; k < width; k += 4) {
    for (int64_t r = 0; r < kListRows; ++r) __builtin_memcpy(four + 4 * r, rows[r] + k, 16);
    I words[4];
    transpose_four<16, 0>(reinterpret_cast<const uint8_t*>(four), words);
    for (int i = 0; i < 4; ++i) I::store(out + (k + i) * kListRows, words[i]);
  }
}

// Sums [i, i + kListSums) of an output, of sixteen rows each.
static inline void add_list_sums(const ListPanel& panel, int64_t begin, int64_t end, const ListScratch& scratch, int i,
                                 float* sums) {
  V acc[kListSums];
  for (int s = 0; s < kListSums; ++s) acc[s] = V::set1(0.0f);
  const float* weights = scratch.weights() + i;
  for (int64_t g = begin; g < end; ++g, weights += ListPanel::kGroupWeights)
    for (int s = 0; s < kListSums; ++s) {
      const float* rows = scratch.rows() + half_word(panel.group(g), i + s) * kListRows;
      acc[s] = V::fma(V::load(rows), V::set1(weights[s]), acc[s]);
    }
  for (int s = 0; s < kListSums; ++s) V::store(sums + s * kListRows, acc[s]);
}

// One output by sixteen transposed rows.
static inline V dot_list_rows(const ListPanel& panel, int n, const ListScratch& scratch) {
  const int64_t begin = panel.start(n), end = panel.start(n + 1);
  for (int64_t g = begin; g < end; ++g)
    V::store(scratch.weights() + (g - begin) * ListPanel::kGroupWeights,
             codes_f16(panel.group(g) + ListPanel::kWeightsAt));
  float sums[ListPanel::kGroupWeights * kListRows];
  for (int i = 0; i < ListPanel::kGroupWeights; i += kListSums)
    add_list_sums(panel, begin, end, scratch, i, sums + i * kListRows);
  for (int half = ListPanel::kGroupWeights / 2; half > 0; half /= 2)  // the order of V::sum
    for (int i = 0; i < half; ++i) {
      float* sum = sums + i * kListRows;
      V::store(sum, V::add(V::load(sum), V::load(sum + half * kListRows)));
    }
  return V::load(sums);
}

// Sums [count][4][16] of the rows from `row` on, for the places of a unit that are lists.
static void multiply_lists(const LinearArgs& args, const Unit& unit, const Activations& x, int64_t row, int64_t count,
                           const ListScratch& scratch, float* sums) {
  for (int64_t first = 0; first < count; first += kListRows) {
    const int64_t num_rows = count - first < kListRows ? count - first : kListRows;
    bool is_transposed = false;
    for (int place = 0; place < unit.num_places(); ++place) {
      const PackedWeight& weight = args.weights[unit.weight(place)];
      if (weight.format != Format::kF16_LIST) continue;
      if (!is_transposed) transpose_rows(x, row + first, num_rows, scratch.rows());
      is_transposed = true;
      for (int n = 0; n < kPanelOutputs; ++n) {
        float lanes[kListRows];
        V::store(lanes, dot_list_rows({weight.panel(unit.panel(place))}, n, scratch));
        for (int64_t r = 0; r < num_rows; ++r) sums[((first + r) * 4 + place) * 16 + n] = lanes[r];
      }
    }
  }
}
