// The rotation that spreads outliers over channels before they are quantized to eight bits.
//
// Rows x and weights w are both transformed by a symmetric matrix H with H H = factor * 1, so that x . w = (H x) . (H
// w) / factor. H is a Walsh-Hadamard transform of blocks of channels, the largest power of two that divides the width
// (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456), then, where there are few blocks, a Hartley transform across them:
// output i is the sum of (cos + sin)(2 pi i j / blocks) times block j. It follows from the width alone.
#pragma once

#include <cstdint>

namespace subsecond {

struct Rotation {
  static constexpr int64_t kMaxMixed = 12;  // more blocks cost more than mixing them gains

  int64_t block;
  int64_t num_mixed;  // blocks that are mixed with each other, 1 for none

  explicit Rotation(int64_t width) : block(width & -width), num_mixed(width / block) {
    if (block < 16 || num_mixed > kMaxMixed) num_mixed = 1;
  }
  float factor() const { return static_cast<float>(block * num_mixed); }
};

// The Hartley matrix [count][count], count <= kMaxMixed.
const float* hartley_matrix(int64_t count);

}  // namespace subsecond
