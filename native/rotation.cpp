#include "rotation.h"

#include <array>
#include <cmath>

namespace subsecond {
namespace {

constexpr int64_t kMax = Rotation::kMaxMixed;
using Matrices = std::array<std::array<float, kMax * kMax>, kMax + 1>;

Matrices make_matrices() {
  constexpr double kTurn = 6.283185307179586;
  Matrices matrices{};
  for (int64_t count = 1; count <= kMax; ++count)
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < count; ++j) {
        const double angle = kTurn * static_cast<double>(i * j % count) / static_cast<double>(count);
        matrices[static_cast<size_t>(count)][static_cast<size_t>(i * count + j)] =
            static_cast<float>(std::cos(angle) + std::sin(angle));
      }
  return matrices;
}

}  // namespace

const float* hartley_matrix(int64_t count) {
  static const Matrices matrices = make_matrices();
  return matrices[static_cast<size_t>(count)].data();
}

}  // namespace subsecond
