// A mixture of experts: every expert that was chosen runs once, over all of its rows, with the kernels of a linear.
//
// A row's result is the sum over its experts in order of their index, each a linear whose rows do not depend on each
// other: it is the same whatever rows are beside it.

#include <cstring>

#include "executor_step.h"

namespace subsecond {

// Gather (for the inputs) and pack the rows of every expert.
void Executor::pack_experts(const Call& call, Step& step, bool is_hidden) {
  const ExpertsShape& shape = call.experts;
  const Matrix input = locate(call.inputs[0], step.batch);
  const int64_t width = is_hidden ? shape.ff_width : shape.width;
  step.share(static_cast<int64_t>(routes_.pieces().size()), [&](int64_t item) {
    const ExpertRoutes::Piece& piece = routes_.pieces()[static_cast<size_t>(item)];
    const ExpertGroup& group = routes_.groups()[static_cast<size_t>(piece.group)];
    const Matrix rows = is_hidden ? routes_.hidden(shape, group.start) : routes_.rows(shape, group.start);
    const int64_t first = piece.row_group * kGroupRows;
    for (int64_t i = first; i < first + kGroupRows && i < group.count && !is_hidden; ++i)
      std::memcpy(rows.row(i), input.row(routes_.row_of(group.start + i)), static_cast<size_t>(width) * sizeof(float));
    const PackArgs pack{rows, group.count, width, nullptr, 0.0f, routes_.packed() + group.packed_offset[is_hidden]};
    kernels_.stored.pack_rows(pack, piece.row_group, piece.row_group + 1, step.scratch);
  });
}

// gate and up of every expert into the hidden rows, or down of every expert into the rows of its results.
void Executor::multiply_experts(const Call& call, Step& step, bool is_down) {
  const ExpertsShape& shape = call.experts;
  static constexpr const float* no_biases[2] = {nullptr, nullptr};
  const auto arguments = [&](const ExpertGroup& group) {
    const size_t first = static_cast<size_t>(group.expert) * 3;
    return LinearArgs{routes_.packed() + group.packed_offset[is_down],
                      group.count,
                      call.weights.data() + first + (is_down ? 2 : 0),
                      no_biases,
                      is_down ? 1 : 2,
                      !is_down,
                      call.activation,
                      {},
                      is_down ? routes_.rows(shape, group.start) : routes_.hidden(shape, group.start)};
  };
  if (routes_.groups().empty()) return;
  // Experts have weights of one shape, so that all have as many units.
  const int64_t num_units = linear_units(arguments(routes_.groups()[0]));
  step.share(static_cast<int64_t>(routes_.groups().size()) * num_units, [&](int64_t item) {
    const LinearArgs args = arguments(routes_.groups()[static_cast<size_t>(item / num_units)]);
    kernels_.stored.linear(args, item % num_units, item % num_units + 1, step.scratch);
  });
}

void Executor::run_experts(const Call& call, Step& step) {
  const ExpertsShape& shape = call.experts;
  const int64_t num_rows = rows_of(call.output, step.batch);
  const Matrix router = locate(call.inputs[1], step.batch), output = locate(call.output, step.batch);
  step.share(num_rows, [&](int64_t row) { routes_.choose(kernels_, shape, router.row(row), row); });
  step.barrier.wait();
  if (step.thread == 0) routes_.group(kernels_, shape, num_rows);
  step.barrier.wait();
  for (const bool is_down : {false, true}) {
    pack_experts(call, step, is_down);
    step.barrier.wait();
    multiply_experts(call, step, is_down);
    step.barrier.wait();
  }
  step.share(num_rows, [&](int64_t row) {
    float* sum = output.row(row);
    std::memset(sum, 0, static_cast<size_t>(shape.width) * sizeof(float));
    for (int64_t i = 0; i < shape.num_chosen; ++i)
      kernels_.add_scaled(routes_.rows(shape, routes_.slots(shape, row)[i]).data, sum, shape.width,
                          routes_.weights(shape, row)[i]);
  });
}

}  // namespace subsecond
