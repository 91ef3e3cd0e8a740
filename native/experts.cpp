#include "experts.h"

#include <algorithm>

namespace subsecond {

void choose_experts(const Kernels& kernels, const ExpertsShape& shape, const float* logits, float* probabilities,
                    int32_t* chosen, float* weights) {
  kernels.softmax(logits, probabilities, shape.num_experts);
  int64_t count = 0;
  for (int64_t expert = 0; expert < shape.num_experts; ++expert) {
    const float probability = probabilities[expert];
    int64_t place = count;
    while (place > 0 && probability > probabilities[chosen[place - 1]]) --place;
    if (place == shape.num_chosen) continue;
    count = std::min(count + 1, shape.num_chosen);
    for (int64_t i = count - 1; i > place; --i) chosen[i] = chosen[i - 1];
    chosen[place] = static_cast<int32_t>(expert);
  }
  std::sort(chosen, chosen + shape.num_chosen);
  float sum = 0.0f;
  for (int64_t i = 0; i < shape.num_chosen; ++i) sum += weights[i] = probabilities[chosen[i]];
  for (int64_t i = 0; i < shape.num_chosen && shape.is_normalized; ++i) weights[i] /= sum;
}

void ExpertRoutes::reserve(const Kernels& kernels, const ExpertsShape& shape, int64_t max_rows) {
  const int64_t pairs = max_rows * shape.num_chosen;
  // The packed rows of one expert may be rounded up to a whole row group.
  const int64_t padded = pairs + std::min(pairs, shape.num_experts) * (kGroupRows - 1);
  constexpr auto float_bytes = static_cast<int64_t>(sizeof(float));
  max_pairs_ = std::max(max_pairs_, pairs);
  max_experts_ = std::max(max_experts_, shape.num_experts);
  max_probabilities_ = std::max(max_probabilities_, max_rows * shape.num_experts);
  row_bytes_ = std::max(row_bytes_, pairs * shape.width * float_bytes);
  hidden_bytes_ = std::max(hidden_bytes_, pairs * shape.ff_width * float_bytes);
  packed_bytes_ =
      std::max(packed_bytes_, kernels.stored.activation_bytes(padded, std::max(shape.width, shape.ff_width)));
}

void ExpertRoutes::allocate() {
  const auto pairs = static_cast<size_t>(max_pairs_);
  chosen_.resize(pairs);
  slots_.resize(pairs);
  row_of_slot_.resize(pairs);
  weights_.resize(pairs);
  probabilities_.resize(static_cast<size_t>(max_probabilities_));
  next_slot_.resize(static_cast<size_t>(max_experts_));
  rows_ = Buffer(static_cast<size_t>(row_bytes_));
  hidden_ = Buffer(static_cast<size_t>(hidden_bytes_));
  packed_ = Buffer(static_cast<size_t>(packed_bytes_));
}

void ExpertRoutes::choose(const Kernels& kernels, const ExpertsShape& shape, const float* logits, int64_t row) {
  choose_experts(kernels, shape, logits, probabilities_.data() + row * shape.num_experts,
                 chosen_.data() + row * shape.num_chosen, weights_.data() + row * shape.num_chosen);
}

void ExpertRoutes::group(const Kernels& kernels, const ExpertsShape& shape, int64_t num_rows) {
  groups_.clear();
  pieces_.clear();
  const auto num_pairs = static_cast<size_t>(num_rows * shape.num_chosen);
  std::fill(next_slot_.begin(), next_slot_.end(), 0);
  for (size_t pair = 0; pair < num_pairs; ++pair) ++next_slot_[static_cast<size_t>(chosen_[pair])];
  int64_t start = 0, packed[2] = {0, 0};
  for (int64_t expert = 0; expert < shape.num_experts; ++expert) {
    int64_t& next = next_slot_[static_cast<size_t>(expert)];
    const int64_t count = next;
    next = start;
    if (count == 0) continue;
    const auto index = static_cast<int32_t>(groups_.size());
    groups_.push_back({expert, start, count, {packed[0], packed[1]}});
    for (int32_t row_group = 0; row_group * kGroupRows < count; ++row_group) pieces_.push_back({index, row_group});
    packed[0] += kernels.stored.activation_bytes(count, shape.width);
    packed[1] += kernels.stored.activation_bytes(count, shape.ff_width);
    start += count;
  }
  for (size_t pair = 0; pair < num_pairs; ++pair) {
    const int64_t slot = next_slot_[static_cast<size_t>(chosen_[pair])]++;
    slots_[pair] = static_cast<int32_t>(slot);
    row_of_slot_[static_cast<size_t>(slot)] = static_cast<int32_t>(static_cast<int64_t>(pair) / shape.num_chosen);
  }
}

}  // namespace subsecond
