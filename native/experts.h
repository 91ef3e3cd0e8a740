// Mixture of experts: which experts each row goes to, and the memory in which every expert works on its rows at once.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "memory.h"

namespace subsecond {

struct ExpertsShape {
  int64_t num_experts = 0;
  int64_t num_chosen = 0;  // a row
  bool is_normalized = false;
  int64_t width = 0;
  int64_t ff_width = 0;
};

// The `num_chosen` most probable experts of a row, ascending, and their weights: the softmax of the logits, divided by
// the sum of the chosen ones when normalized. Of equal ones the lower index. `probabilities` holds num_experts floats.
void choose_experts(const Kernels& kernels, const ExpertsShape& shape, const float* logits, float* probabilities,
                    int32_t* chosen, float* weights);

// The rows of one expert: slots [start, start + count), in order of rows.
struct ExpertGroup {
  int64_t expert;
  int64_t start;
  int64_t count;
  int64_t packed_offset[2];  // bytes of its packed inputs and hidden rows
};

// What one step of one mixture needs. A slot is a pair of a row and one of its experts; slots are ordered by expert.
class ExpertRoutes {
 public:
  // Widen the memory to hold this mixture; allocate after the last one.
  void reserve(const Kernels& kernels, const ExpertsShape& shape, int64_t max_rows);
  void allocate();

  // Choose the experts of one row; rows may run side by side.
  void choose(const Kernels& kernels, const ExpertsShape& shape, const float* logits, int64_t row);
  // Order the slots of rows [0, num_rows); one thread, after all have chosen.
  void group(const Kernels& kernels, const ExpertsShape& shape, int64_t num_rows);

  // Groups of kGroupRows slots or fewer of one expert.
  struct Piece {
    int32_t group;
    int32_t row_group;
  };

  const std::vector<ExpertGroup>& groups() const { return groups_; }
  const std::vector<Piece>& pieces() const { return pieces_; }
  int32_t row_of(int64_t slot) const { return row_of_slot_[static_cast<size_t>(slot)]; }
  // Slots and weights of a row, num_chosen of each in order of the experts.
  const int32_t* slots(const ExpertsShape& shape, int64_t row) const { return slots_.data() + row * shape.num_chosen; }
  const float* weights(const ExpertsShape& shape, int64_t row) const {
    return weights_.data() + row * shape.num_chosen;
  }

  // [slots][width]: inputs until they are packed, results of the experts afterwards.
  Matrix rows(const ExpertsShape& shape, int64_t start) const {
    return {rows_.floats() + start * shape.width, shape.width};
  }
  // [slots][ff_width]
  Matrix hidden(const ExpertsShape& shape, int64_t start) const {
    return {hidden_.floats() + start * shape.ff_width, shape.ff_width};
  }
  uint8_t* packed() const { return packed_.data(); }

 private:
  int64_t max_pairs_ = 0, max_probabilities_ = 0, max_experts_ = 0;
  int64_t row_bytes_ = 0, hidden_bytes_ = 0, packed_bytes_ = 0;
  std::vector<int32_t> chosen_, slots_, row_of_slot_;
  std::vector<float> weights_, probabilities_;
  std::vector<int64_t> next_slot_;
  std::vector<ExpertGroup> groups_;
  std::vector<Piece> pieces_;
  Buffer rows_, hidden_, packed_;
};

}  // namespace subsecond
