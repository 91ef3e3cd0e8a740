// Operands and results of linears of channel formats, whatever multiplies them; included inside a namespace that has
// the vectors `V` and `I` and elementwise.inl.h.

// --- activations ----------------------------------------------------------------------------------------------------

struct RowHead {
  float scale;
  int32_t sum;  // of the row's codes
};

// Rows as quantize_rows leaves them: a RowHead, codes int8[num_tiles * 32], sums of the codes of each tile
// int32[num_tiles]; each part begins at a multiple of 64 bytes.
struct QuantizedRows {
  const uint8_t* packed;
  int64_t num_rows;
  int64_t num_tiles;

  int64_t codes_bytes() const { return (num_tiles * kTileInputs + 63) / 64 * 64; }
  int64_t row_bytes() const { return 64 + codes_bytes() + (num_tiles * 4 + 63) / 64 * 64; }
  const uint8_t* row(int64_t r) const { return packed + r * row_bytes(); }
  const RowHead& head(int64_t r) const { return *reinterpret_cast<const RowHead*>(row(r)); }
  const int8_t* codes(int64_t r) const { return reinterpret_cast<const int8_t*>(row(r) + 64); }
  const int32_t* tile_sums(int64_t r) const { return reinterpret_cast<const int32_t*>(row(r) + 64 + codes_bytes()); }
};

// --- weights --------------------------------------------------------------------------------------------------------

constexpr int32_t kMinusSevens = -0x06060607;  // in every byte

// Multipliers of sixteen outputs, 1 to 16.
static inline I load_multipliers(const uint8_t* p) { return I::add(I::nibble_lanes(p), I::set1(1)); }

// A panel of multipliers and nibbles as unsigned bytes m (q - 8) + 128, plus r - 7 where there is a residual.
static void unpack_nibbles(const uint8_t* panel, const uint8_t* residual, int64_t num_tiles, uint8_t* plane) {
  const ChannelPanel layout{Format::kINT4, num_tiles};
  const I low_bits = I::set1(0x0f0f0f0f);
  for (int64_t t = 0; t < num_tiles; ++t, plane += ChannelPanel::kTileBytes) {
    const uint8_t* tile = panel + layout.codes_at() + t * layout.tile_bytes();
    const I m = load_multipliers(panel + layout.multipliers_at() + t * layout.kTileMultiplierBytes);
    const I words = I::multiply(m, I::set1(0x00010001));
    I offset = I::multiply(I::add(I::set1(128), I::multiply(m, I::set1(-8))), I::set1(0x01010101));
    if (residual) offset = I::add_bytes(offset, I::set1(kMinusSevens));
    for (int v = 0; v < 4; ++v) {
      // Products of bytes stay below 256, so a word holds two of them.
      const I both = I::load(tile + 64 * v);
      I low = I::multiply_words(I::both(both, low_bits), words);
      I high = I::multiply_words(I::both(I::template shift<4>(both), low_bits), words);
      if (residual) {
        const I rest = I::load(residual + t * layout.tile_bytes() + 64 * v);
        low = I::add_bytes(low, I::both(rest, low_bits));
        high = I::add_bytes(high, I::both(I::template shift<4>(rest), low_bits));
      }
      I::store(plane + 64 * v, I::add_bytes(low, offset));
      I::store(plane + 256 + 64 * v, I::add_bytes(high, offset));
    }
  }
}

// The panels of a unit at four places, of a gated linear those of gate, then those of up; a missing one repeats the
// last, and its sums are dropped.
struct ChannelUnit {
  UnitPanels work;
  int num_places;
  const PackedWeight* weights[4];
  const uint8_t* panels[4];
  const uint8_t* residuals[4];  // null where the reading has none

  ChannelUnit(const LinearArgs& args, int64_t unit) : work(unit_panels(args, unit, PanelOrder::kAdjacent)) {
    num_places = args.is_gated ? 2 * work.num_panels : work.num_panels;
    for (int place = 0; place < 4; ++place) {
      const int source = place < num_places ? place : num_places - 1;
      weights[place] = args.weights + (args.is_gated ? source / work.num_panels : work.weight);
      const int64_t panel = work.panels[args.is_gated ? source % work.num_panels : source];
      panels[place] = weights[place]->panel(panel);
      residuals[place] = nullptr;
      if (weights[place]->format == Format::kNESTED8)
        residuals[place] = weights[place]->data + layout(place).residual_at(weights[place]->num_panels(), panel);
    }
  }

  ChannelPanel layout(int place) const { return {weights[place]->format, weights[place]->num_tiles()}; }

  // Codes of all places as unsigned bytes, nibbles unpacked into `scratch`, kTileBytes for each tile and place.
  void find_planes(uint8_t* scratch, const uint8_t* (&planes)[4]) const {
    for (int place = 0; place < 4; ++place) {
      planes[place] = panels[place] + layout(place).codes_at();
      if (weights[place]->format == Format::kINT8) continue;
      const int64_t num_tiles = weights[place]->num_tiles();
      uint8_t* plane = scratch + place * num_tiles * ChannelPanel::kTileBytes;
      unpack_nibbles(panels[place], residuals[place], num_tiles, plane);
      planes[place] = plane;
    }
  }
};

// --- results --------------------------------------------------------------------------------------------------------

// Finish `count` rows from `row` on: sums [count][4][16], with `byte_offset` left in every byte of a weight.
static inline void write_channels(const LinearArgs& args, const ChannelUnit& unit, const QuantizedRows& rows,
                                  int64_t row, int64_t count, const int32_t* sums, int byte_offset) {
  const int num_panels = unit.work.num_panels;
  for (int64_t r = 0; r < count; ++r) {
    const RowHead& head = rows.head(row + r);
    const I offset = I::set1(-byte_offset * head.sum);
    float values[4][16];
    for (int place = 0; place < unit.num_places; ++place) {
      const V scales = V::mul(V::load(reinterpret_cast<const float*>(unit.panels[place])), V::set1(head.scale));
      V::store(values[place], V::mul(I::to_float(I::add(I::load(sums + (r * 4 + place) * 16), offset)), scales));
    }
    for (int i = 0; i < num_panels; ++i) {
      const int64_t column = unit.work.panels[i] * kPanelOutputs;
      write_outputs(args, unit.work.weight, row + r, column, unit.work.column_offset + column, values[i],
                    args.is_gated ? values[num_panels + i] : nullptr);
    }
  }
}
