// Codes of a tile as pairs of 16-bit words of sixteen outputs, for every stored format; included by i16_linear.inl.h.

// body.operator()<0>(), ..., body.operator()<count - 1>()
template <int count, class Body>
[[gnu::always_inline]] static inline void repeat(Body body) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (body.template operator()<i>(), ...);
  }(std::make_integer_sequence<int, count>());
}

static inline I both_words(int x) { return I::set1(x << 16 | x); }

// Sixteen bits of every row, those of inputs 16 half on: bits 2 i of both words belong to pair i.
template <int half>
static inline I bit_pairs(I bits) {
  return I::shift_high_words(I::shuffle(bits, half ? 0x03020302 : 0x01000100));
}

// visit.operator()<p>(words) for the sixteen pairs of inputs 2 p, 2 p + 1 in some order; `words` are sixteen outputs'
// codes, without bias.
template <Format F, class Visit>
[[gnu::always_inline]] static inline void each_pair(const uint8_t* tile, Visit visit) {
  constexpr FormatInfo info = format_info(F);
  constexpr CodeFields fields = info.codes;
  const uint8_t* codes = tile + info.codes_at(0);
  const uint8_t* high = tile + info.high_at(0);
  if constexpr (fields == CodeFields::kBytes) {
    repeat<2>([&]<int half>() __attribute__((always_inline)) {
      I rows[4];
      transpose_four<32, 16 * half>(codes, rows);
      repeat<4>([&]<int v>() __attribute__((always_inline)) {
        visit.template operator()<8 * half + 2 * v>(I::high_bytes(I::shuffle(rows[v], 0x01800080)));
        visit.template operator()<8 * half + 2 * v + 1>(I::high_bytes(I::shuffle(rows[v], 0x03800280)));
      });
    });
  } else if constexpr (fields == CodeFields::kTwoBits || fields == CodeFields::kThreeBits) {
    I rows[2], bits[2];
    transpose_two(codes, rows);
    if constexpr (fields == CodeFields::kThreeBits) {
      bits[0] = bit_pairs<0>(I::load(high));
      bits[1] = bit_pairs<1>(I::load(high));
    }
    repeat<16>([&]<int pair>() __attribute__((always_inline)) {
      constexpr int l = pair / 2;
      I words = I::both(I::template shift<2 * l>(rows[pair % 2]), both_words(3));
      if constexpr (fields == CodeFields::kThreeBits)
        words = I::add_bits(words, I::template shift<2 * (pair % 8) - 2>(bits[pair / 8]), both_words(4));
      visit.template operator()<pair>(words);
    });
  } else {
    I rows[4], extra[4];
    transpose_four<16, 0>(codes, rows);
    if constexpr (fields == CodeFields::kFiveBits) {
      extra[0] = bit_pairs<0>(I::load(high));
      extra[1] = bit_pairs<1>(I::load(high));
    }
    if constexpr (fields == CodeFields::kSixBits) {
      I pairs[2];
      transpose_two(high, pairs);
      for (int v = 0; v < 4; ++v) extra[v] = I::shuffle(pairs[v / 2], v % 2 ? 0x80038002 : 0x80018000);
    }
    repeat<16>([&]<int pair>() __attribute__((always_inline)) {
      constexpr int l = pair / 4, v = pair % 4;
      if constexpr (fields == CodeFields::kNonlinear) {
        const I places = I::both(I::template shift<4 * l - 8>(rows[v]), both_words(0x0f00));
        const I indices = I::add_bits(places, both_words(0x80), both_words(0x80));
        return visit.template operator()<pair>(I::high_bytes(I::look_up(kNonlinearValues, indices)));
      }
      I words = I::template shift<4 * l>(rows[v]);
      if constexpr (l < 3) words = I::both(words, both_words(15));
      if constexpr (fields == CodeFields::kFiveBits)
        words = I::add_bits(words, I::template shift<2 * (pair % 8) - 4>(extra[pair / 8]), both_words(16));
      if constexpr (fields == CodeFields::kSixBits)
        words = I::add_bits(words, I::template shift<2 * l - 4>(extra[v]), both_words(0x30));
      visit.template operator()<pair>(words);
    });
  }
}
