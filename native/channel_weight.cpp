#include "channel_weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace subsecond {
namespace {

constexpr float kSmallestScale = 1e-30f;  // weights of smaller magnitude count as zeros: the inverse would overflow
constexpr int kMaxMultiplier = 16;

float largest_magnitude(const float* x, int64_t count) {
  float largest = 0.0f;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(x[i]));
  return largest;
}

// Damaged weights must show: one that is not finite makes the scale of its output, and so every result, NaN.
bool is_finite(const float* x, int64_t count) {
  float poison = 0.0f;
  for (int64_t i = 0; i < count; ++i) poison += 0.0f * x[i];
  return poison == 0.0f;
}

// Nearest whole number, ties to even, for magnitudes below 2^22: adding 1.5 * 2^23 leaves no bit for a fraction.
float round_small(float x) {
  constexpr float kShift = 12582912.0f;
  return (x + kShift) - kShift;
}

float code_of(float x, float inverse, float lowest, float highest) {
  return std::min(std::max(round_small(x * inverse), lowest), highest);
}

// Where input k of output n stands in a tile of unsigned bytes.
int64_t byte_at(int64_t k, int64_t n) { return k / 4 * 64 + n * 4 + k % 4; }

float quantize_int8(const float* x, int64_t num_inputs, int64_t n, uint8_t* codes) {
  const float scale = largest_magnitude(x, num_inputs) / 127.0f;
  const float inverse = scale > kSmallestScale ? 1.0f / scale : 0.0f;
  for (int64_t k = 0; k < num_inputs; ++k)
    codes[k / kTileInputs * ChannelPanel::kTileBytes + byte_at(k % kTileInputs, n)] =
        static_cast<uint8_t>(static_cast<int>(code_of(x[k], inverse, -127.0f, 127.0f)) + 128);
  return scale;
}

// Squared error of a group with the given step.
float error_of(const float* x, int64_t count, float step) {
  const float inverse = 1.0f / step;
  float error = 0.0f;
  for (int64_t k = 0; k < count; ++k) {
    const float difference = x[k] - step * code_of(x[k], inverse, -8.0f, 7.0f);
    error += difference * difference;
  }
  return error;
}

// Of the multiplier that just holds the largest magnitude and its two lower neighbours, which clip it, the one of
// least squared error.
int best_multiplier(const float* x, int64_t count, float scale) {
  const int enough = static_cast<int>(std::ceil(largest_magnitude(x, count) / (7.0f * scale)));
  int best = 1;
  float least = std::numeric_limits<float>::infinity();
  for (int m = std::max(1, enough - 2); m <= std::clamp(enough, 1, kMaxMultiplier); ++m) {
    const float error = error_of(x, count, scale * static_cast<float>(m));
    if (error < least) {
      least = error;
      best = m;
    }
  }
  return best;
}

float quantize_int4(const float* x, int64_t num_inputs, int64_t n, uint8_t* multipliers, uint8_t* codes) {
  const float scale = largest_magnitude(x, num_inputs) / (7.0f * kMaxMultiplier);
  const bool is_zero = !(scale > kSmallestScale);
  for (int64_t k = 0; k < num_inputs; k += kTileInputs) {
    const int64_t count = std::min(kTileInputs, num_inputs - k), tile = k / kTileInputs;
    const int m = is_zero ? 1 : best_multiplier(x + k, count, scale);
    multipliers[tile * ChannelPanel::kTileMultiplierBytes + n % 8] |= static_cast<uint8_t>((m - 1) << (n < 8 ? 0 : 4));
    const float inverse = is_zero ? 0.0f : 1.0f / (scale * static_cast<float>(m));
    for (int64_t i = 0; i < kTileInputs; ++i) {
      const int code = i < count ? 8 + static_cast<int>(code_of(x[k + i], inverse, -8.0f, 7.0f)) : 8;
      uint8_t& byte = codes[tile * ChannelPanel::kTileBytes / 2 + byte_at(i % 16, n)];
      byte |= static_cast<uint8_t>(code << (i < 16 ? 0 : 4));
    }
  }
  return scale;
}

// Whole numbers of a nested format, m (q - 8) + r - 7: a multiplier reaches the multiples of -8 to 7 and what residuals
// add to them. The largest reaches all.
constexpr float kLowestNested = -128.0f, kHighestNested = 120.0f;
constexpr int kLowestResidual = -7, kHighestResidual = 8;

// The scale with which the largest weights of either sign just fit, negative where that turns them around.
float nested_scale(const float* x, int64_t num_inputs) {
  float lowest = 0.0f, highest = 0.0f;
  for (int64_t k = 0; k < num_inputs; ++k) {
    lowest = std::min(lowest, x[k]);
    highest = std::max(highest, x[k]);
  }
  const float plain = std::max(lowest / kLowestNested, highest / kHighestNested);
  const float turned = std::max(-highest / kLowestNested, -lowest / kHighestNested);
  return plain <= turned ? plain : -turned;
}

// Weights of a tile over the scale of their output, and rounded.
struct NestedTile {
  float values[kTileInputs];
  int numbers[kTileInputs];

  // The multiplier of least squared error in four bits, of those that reach all numbers.
  int best_multiplier() const {
    const auto [low, high] = std::minmax_element(numbers, numbers + kTileInputs);
    const int enough = std::clamp(std::max((*high + 6) / 7, (7 - *low) / 8), 1, kMaxMultiplier);
    int best = enough;
    float least = std::numeric_limits<float>::infinity();
    for (int m = std::max(1, enough - 2); m <= enough; ++m) {
      if (*low < -8 * m + kLowestResidual || *high > 7 * m + kHighestResidual) continue;
      const float error = error_of(values, kTileInputs, static_cast<float>(m));
      if (!(error < least)) continue;
      least = error;
      best = m;
    }
    return best;
  }
};

NestedTile nested_tile(const float* x, int64_t count, float inverse) {
  NestedTile tile{};
  for (int64_t i = 0; i < count; ++i) {
    tile.values[i] = x[i] * inverse;
    tile.numbers[i] = static_cast<int>(code_of(x[i], inverse, kLowestNested, kHighestNested));
  }
  return tile;
}

// Writes output n of a tile.
void put_nested(const NestedTile& tile, int64_t n, uint8_t* multipliers, uint8_t* codes, uint8_t* residuals) {
  const int m = tile.best_multiplier();
  multipliers[n % 8] |= static_cast<uint8_t>((m - 1) << (n < 8 ? 0 : 4));
  for (int64_t i = 0; i < kTileInputs; ++i) {
    const int number = tile.numbers[i];
    int q = static_cast<int>(code_of(tile.values[i], 1.0f / static_cast<float>(m), -8.0f, 7.0f));
    // the nearest multiple of a large m may be one too far for the residual
    if (number - m * q > kHighestResidual) ++q;
    if (number - m * q < kLowestResidual) --q;
    const int residual = number - m * q - kLowestResidual, shift = i < 16 ? 0 : 4;
    codes[byte_at(i % 16, n)] |= static_cast<uint8_t>((q + 8) << shift);
    residuals[byte_at(i % 16, n)] |= static_cast<uint8_t>(residual << shift);
  }
}

float quantize_nested(const float* x, int64_t num_inputs, int64_t n, uint8_t* multipliers, uint8_t* codes,
                      uint8_t* residuals) {
  const float scale = nested_scale(x, num_inputs);
  const float inverse = std::abs(scale) > kSmallestScale ? 1.0f / scale : 0.0f;
  for (int64_t k = 0; k < num_inputs; k += kTileInputs) {
    const int64_t index = k / kTileInputs, at = index * ChannelPanel::kTileBytes / 2;
    const NestedTile tile = nested_tile(x + k, std::min(kTileInputs, num_inputs - k), inverse);
    put_nested(tile, n, multipliers + index * ChannelPanel::kTileMultiplierBytes, codes + at, residuals + at);
  }
  return scale;
}

}  // namespace

void quantize_weight(Format format, int64_t num_outputs, int64_t num_inputs, const float* rows, int64_t begin,
                     int64_t end, uint8_t* packed) {
  const PackedWeight weight{format, num_outputs, num_inputs, packed};
  const ChannelPanel panel{format, weight.num_tiles()};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row % kPanelOutputs, index = row / kPanelOutputs;
    uint8_t* data = packed + index * panel.num_bytes();
    uint8_t* residual = packed + panel.residual_at(weight.num_panels(), index);
    if (n == 0) {
      std::memset(data, 0, static_cast<size_t>(panel.codes_at()));
      const int zero = format == Format::kINT8 ? 128 : 0;  // nibbles are or-ed in; rows beyond N have scale 0
      std::memset(data + panel.codes_at(), zero, static_cast<size_t>(panel.num_tiles * panel.tile_bytes()));
      if (is_nested(format)) std::memset(residual, 0, static_cast<size_t>(panel.residual_bytes()));
    }
    const float* x = rows + (row - begin) * num_inputs;
    uint8_t *multipliers = data + panel.multipliers_at(), *codes = data + panel.codes_at();
    float scale = std::numeric_limits<float>::quiet_NaN();
    if (is_finite(x, num_inputs)) {
      if (format == Format::kINT8) scale = quantize_int8(x, num_inputs, n, codes);
      if (format == Format::kINT4) scale = quantize_int4(x, num_inputs, n, multipliers, codes);
      if (is_nested(format)) scale = quantize_nested(x, num_inputs, n, multipliers, codes, residual);
    }
    std::memcpy(data + 4 * n, &scale, 4);
  }
}

}  // namespace subsecond
