// Scales of the rows of a tile, the same for every instruction set and both arithmetics; included inside a namespace
// that defines the vector `V` and the code readers.

struct RowScales {
  V d, m;  // of sixteen rows: w = d * code + m
};

// Scales of inputs 16 half .. 16 half + 15; of formats with one scale a row, half is 0.
template <Format F>
static inline RowScales tile_scales(const uint8_t* header, const uint8_t* tile, int half) {
  constexpr FormatInfo info = format_info(F);
  constexpr ScaleFields fields = info.scales;
  const uint8_t* d_and_m = info.header_bytes > 0 ? header : tile;
  V d = codes_f16(d_and_m), m = V::set1(0.0f);
  if constexpr (fields == ScaleFields::kNibblePairMinimum)
    d = V::mul(d, codes_u4(tile, half));
  else if constexpr (fields != ScaleFields::kHalf && fields != ScaleFields::kHalfMinimum)
    d = V::mul(d, codes_s8(tile + 16 * half));
  if constexpr (info.bias != 0) m = V::mul(d, V::set1(static_cast<float>(-info.bias)));
  if constexpr (info.has_minimum()) {
    const V minimum = codes_f16(d_and_m + 32);
    if constexpr (fields == ScaleFields::kHalfMinimum)
      m = minimum;
    else if constexpr (fields == ScaleFields::kByteMinimum)
      m = V::sub(m, V::mul(minimum, codes_s8(tile + 16)));
    else
      m = V::sub(m, V::mul(minimum, codes_u4(tile + 16, half)));
  }
  return {d, m};
}
