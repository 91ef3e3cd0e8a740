// Kernels in plain C++: the reference for every other instruction set, and the fall-back on any processor.

#include "../kernels.h"

namespace subsecond::scalar {
namespace {

struct V {
  float lane[16];

  template <class F>
  static V each(F f) {
    V v;
    for (int i = 0; i < 16; ++i) v.lane[i] = f(i);
    return v;
  }
  static V load(const float* p) {
    return each([&](int i) { return p[i]; });
  }
  static V load_n(const float* p, int n) {
    return each([&](int i) { return i < n ? p[i] : 0.0f; });
  }
  static void store(float* p, V v) { store_n(p, v, 16); }
  static void store_n(float* p, V v, int n) {
    for (int i = 0; i < n; ++i) p[i] = v.lane[i];
  }
  // IEEE half precision, ties to even.
  static uint16_t to_half(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u)
      half = 0x7e00u | (magnitude >> 13 & 0x3ffu);  // NaN
    else if (magnitude >= 0x47800000u)
      half = 0x7c00u;  // infinity
    else if (magnitude < 0x38800000u)
      half = static_cast<uint32_t>(__builtin_nearbyintf(__builtin_fabsf(x) * 16777216.0f));  // subnormal
    else
      half = ((magnitude + 0xfffu + (magnitude >> 13 & 1u)) >> 13) - (112u << 10);
    return static_cast<uint16_t>(sign | half);
  }
  static void store_half(uint16_t* p, V v) {
    for (int i = 0; i < 16; ++i) p[i] = to_half(v.lane[i]);
  }
  static V set1(float x) {
    return each([&](int) { return x; });
  }
  static V add(V a, V b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static V sub(V a, V b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static V mul(V a, V b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static V div(V a, V b) {
    return each([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  static V fma(V a, V b, V c) {
    return each([&](int i) { return __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]); });
  }
  // Of two equal or unordered values the second, as the vector instructions do.
  static V max(V a, V b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static V min(V a, V b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static V round(V a) {
    return each([&](int i) { return __builtin_nearbyintf(a.lane[i]); });
  }
  // 2 ** n for integral n in [-126, 127].
  static V pow2(V n) {
    return each([&](int i) {
      const int32_t exponent = n.lane[i] == n.lane[i] ? static_cast<int32_t>(n.lane[i]) : 0;  // NaN has none
      const int32_t bits = (exponent + 127) << 23;
      float x;
      __builtin_memcpy(&x, &bits, 4);
      return x;
    });
  }
  // The lowest nine bits become sign and exponent.
  static V to_exponent(V v) {
    return each([&](int i) {
      uint32_t bits;
      __builtin_memcpy(&bits, &v.lane[i], 4);
      bits <<= 23;
      float x;
      __builtin_memcpy(&x, &bits, 4);
      return x;
    });
  }
  static V keep_first(V v, int n, float other) {
    return each([&](int i) { return i < n ? v.lane[i] : other; });
  }
  static V drop_first(V v, int n, float other) {
    return each([&](int i) { return i < n ? other : v.lane[i]; });
  }
  static float sum(V v) {
    for (int width = 8; width > 0; width /= 2)
      for (int i = 0; i < width; ++i) v.lane[i] += v.lane[i + width];
    return v.lane[0];
  }
  static float largest(V v) {
    for (int i = 1; i < 16; ++i) v.lane[0] = v.lane[i] > v.lane[0] ? v.lane[i] : v.lane[0];
    return v.lane[0];
  }
  static float first(V v) { return v.lane[0]; }
  // Lane i is lane i ^ step.
  template <int step>
  static V exchange(V v) {
    return each([&](int i) { return v.lane[i ^ step]; });
  }
};

float half_to_float(const uint8_t* p) {
  const uint32_t h = p[0] | static_cast<uint32_t>(p[1]) << 8;
  const uint32_t sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
  uint32_t bits = sign | (exponent + 112) << 23 | mantissa << 13;
  float x;
  if (exponent == 31) bits = sign | 0x7f800000u | mantissa << 13;
  if (exponent == 0) {
    x = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    return sign ? -x : x;
  }
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

V codes_f16(const uint8_t* p) {
  return V::each([&](int i) { return half_to_float(p + 2 * i); });
}

// Sixteen weights, of which those whose bits are set follow each other at p; the others are zero.
V expand_halves(const uint8_t* p, uint32_t mask) {
  return V::each([&](int i) {
    if (!(mask >> i & 1)) return 0.0f;
    const float x = half_to_float(p);
    p += 2;
    return x;
  });
}

// x[i] for sixteen indices of 16 bits.
V gather_lanes(const float* x, const uint8_t* indices) {
  return V::each([&](int i) { return x[half_word(indices, i)]; });
}

V codes_bf16(const uint8_t* p) {
  return V::each([&](int i) {
    const uint32_t bits = static_cast<uint32_t>(p[2 * i]) << 16 | static_cast<uint32_t>(p[2 * i + 1]) << 24;
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
  });
}

int nibble(const uint8_t* p, int k) { return ((p[2 * (k % 8)] | p[2 * (k % 8) + 1] << 8) >> (4 * (k / 8))) & 15; }

int pair(const uint8_t* p, int k) { return ((p[2 * (k % 4)] | p[2 * (k % 4) + 1] << 8) >> (2 * (k / 4))) & 3; }

int high_bit(const uint8_t* high, int k) { return high[k / 8] >> (k % 8) & 1; }

V codes_u2(const uint8_t* p, int half) {
  return V::each([&](int i) { return static_cast<float>(pair(p, 16 * half + i)); });
}

V codes_u3(const uint8_t* p, const uint8_t* high, int half) {
  return V::each([&](int i) {
    const int k = 16 * half + i;
    return static_cast<float>(pair(p, k) + 4 * high_bit(high, k));
  });
}

V codes_u4(const uint8_t* p, int half) {
  return V::each([&](int i) { return static_cast<float>(nibble(p, 16 * half + i)); });
}

V codes_u5(const uint8_t* p, const uint8_t* high, int half) {
  return V::each([&](int i) {
    const int k = 16 * half + i;
    return static_cast<float>(nibble(p, k) + 16 * high_bit(high, k));
  });
}

V codes_u6(const uint8_t* p, const uint8_t* high, int half) {
  return V::each([&](int i) {
    const int k = 16 * half + i;
    return static_cast<float>(nibble(p, k) + 16 * (high[k % 8] >> (2 * (k / 8)) & 3));
  });
}

V codes_nonlinear(const uint8_t* p, int half) {
  return V::each([&](int i) { return static_cast<float>(kNonlinearValues[nibble(p, 16 * half + i)]); });
}

V codes_s8(const uint8_t* p) {
  return V::each([&](int i) { return static_cast<float>(static_cast<int8_t>(p[i])); });
}

// Sixteen lanes of 32 bits, most often pairs of signed 16-bit codes.
struct I {
  uint32_t lane[16];

  template <class F>
  static I each(F f) {
    I v;
    for (int i = 0; i < 16; ++i) v.lane[i] = f(i);
    return v;
  }
  // f of both words of every lane.
  template <class F>
  static I each_word(I a, F f) {
    return each([&](int i) { return (f(a.lane[i] & 0xffff) & 0xffff) | f(a.lane[i] >> 16) << 16; });
  }
  static I load(const void* p) {
    I v;
    __builtin_memcpy(v.lane, p, 64);
    return v;
  }
  static void store(void* p, I a) { __builtin_memcpy(p, a.lane, 64); }
  static I set1(int32_t x) {
    return each([&](int) { return static_cast<uint32_t>(x); });
  }
  static I zero() { return set1(0); }
  static I in_order(I a) { return a; }
  static I both(I a, I b) {
    return each([&](int i) { return a.lane[i] & b.lane[i]; });
  }
  static I add_bits(I a, I b, I mask) {
    return each([&](int i) { return a.lane[i] | (b.lane[i] & mask.lane[i]); });
  }
  // 16-bit words shifted to the right, or to the left where n is negative.
  template <int n>
  static I shift(I a) {
    return each_word(a, [](uint32_t word) { return n > 0 ? word >> (n & 15) : word << (-n & 15); });
  }
  // High bytes of 16-bit words with their signs.
  static I high_bytes(I a) {
    return each_word(a, [](uint32_t word) { return static_cast<uint32_t>(static_cast<int8_t>(word >> 8)); });
  }
  // High words shifted to the right by one.
  static I shift_high_words(I a) {
    return each([&](int i) { return (a.lane[i] & 0xffff) | (a.lane[i] >> 17) << 16; });
  }
  // Bytes `order` of every lane; 0x80 gives zero.
  static I shuffle(I a, uint32_t order) {
    return each([&](int i) {
      uint32_t bytes = 0;
      for (int b = 0; b < 32; b += 8) {
        const uint32_t source = order >> b & 255;
        if (source < 4) bytes |= (a.lane[i] >> (8 * source) & 255) << b;
      }
      return bytes;
    });
  }
  static I look_up(const int8_t* table, I indices) {
    return each([&](int i) {
      uint32_t bytes = 0;
      for (int b = 0; b < 32; b += 8) {
        const uint32_t index = indices.lane[i] >> b & 255;
        if (index < 16) bytes |= static_cast<uint32_t>(static_cast<uint8_t>(table[index])) << b;
      }
      return bytes;
    });
  }
  static I add(I a, I b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static I add_bytes(I a, I b) {
    return each([&](int i) {
      return ((a.lane[i] & 0x7f7f7f7f) + (b.lane[i] & 0x7f7f7f7f)) ^ ((a.lane[i] ^ b.lane[i]) & 0x80808080);
    });
  }
  static I multiply(I a, I b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static I multiply_words(I a, I b) {
    return each([&](int i) {
      return (a.lane[i] & 0xffff) * (b.lane[i] & 0xffff) % 65536 | (a.lane[i] >> 16) * (b.lane[i] >> 16) << 16;
    });
  }
  // Eight bytes: their low four bits in lanes 0..7, the high ones in lanes 8..15.
  static I nibble_lanes(const uint8_t* p) {
    return each([&](int i) { return static_cast<uint32_t>(p[i % 8] >> (i < 8 ? 0 : 4) & 15); });
  }
  static V to_float(I a) {
    return V::each([&](int i) { return static_cast<float>(static_cast<int32_t>(a.lane[i])); });
  }
};

int32_t low_word(uint32_t lane) { return static_cast<int16_t>(lane & 0xffff); }

int32_t high_word(uint32_t lane) { return static_cast<int16_t>(lane >> 16); }

// Products of pairs of 16-bit codes, added to 32-bit sums.
I dot_add(I sum, I a, I b) {
  return I::each([&](int i) {
    return sum.lane[i] + static_cast<uint32_t>(low_word(a.lane[i]) * low_word(b.lane[i])) +
           static_cast<uint32_t>(high_word(a.lane[i]) * high_word(b.lane[i]));
  });
}

// Lane n is the word at p of row n.
I gather(const uint8_t* p, int stride) {
  return I::each([&](int n) {
    const uint8_t* word = p + n * stride;
    return word[0] | word[1] << 8 | word[2] << 16 | static_cast<uint32_t>(word[3]) << 24;
  });
}

// Sixteen bytes from `start` on of sixteen rows that are `stride` bytes apart.
template <int stride, int start>
void transpose_four(const uint8_t* p, I (&out)[4]) {
  for (int v = 0; v < 4; ++v) out[v] = gather(p + start + 4 * v, stride);
}

// The same for rows of eight bytes side by side.
void transpose_two(const uint8_t* p, I (&out)[2]) {
  for (int v = 0; v < 2; ++v) out[v] = gather(p + 4 * v, 8);
}

// Integral floats within 16 bits; NaN has no code.
void store_words(int16_t* p, V v) {
  for (int i = 0; i < 16; ++i) p[i] = v.lane[i] == v.lane[i] ? static_cast<int16_t>(v.lane[i]) : int16_t{0};
}

// Integral floats within 8 bits.
void store_bytes(int8_t* p, V v) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(v.lane[i]);
}

// Products of four bytes less `bias` and four signed codes, added to 32-bit sums.
template <int bias>
I dot_bytes_of(I sum, I bytes, I codes) {
  return I::each([&](int i) {
    uint32_t total = sum.lane[i];
    for (int b = 0; b < 32; b += 8) {
      const int code = static_cast<int8_t>(codes.lane[i] >> b & 255);
      total += static_cast<uint32_t>((static_cast<int>(bytes.lane[i] >> b & 255) - bias) * code);
    }
    return total;
  });
}
I dot_bytes_add(I sum, I bytes, I codes) { return dot_bytes_of<128>(sum, bytes, codes); }
I dot_nibbles_add(I sum, I bytes, I codes) { return dot_bytes_of<0>(sum, bytes, codes); }

constexpr int kByteOffset = 0;
constexpr int kRowBlock = 1;
constexpr int kPanelBlock = 1;
constexpr int kFloatRows = 1;
constexpr int kColumnBlock = 1;
constexpr int kByteRows = 1;
constexpr int kBytePanels = 4;
constexpr int kScoreQueries = 1;
constexpr int kScoreVectors = 1;
constexpr int kValueQueries = 1;
constexpr int kValueVectors = 1;

#include "../f32_kernels.inl.h"

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels table = make_kernels("scalar");
  return table;
}

}  // namespace subsecond::scalar
