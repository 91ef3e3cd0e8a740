// Runs one segment of a plan: a flat list of kernel calls over an arena, all threads walking the list together.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "experts.h"
#include "kernels.h"
#include "memory.h"
#include "thread_pool.h"

namespace subsecond {

// Where a value lives: `offset` floats per row into the arena of all or of selected rows.
struct Operand {
  enum class Arena : int { kAll, kSelected };
  Arena arena = Arena::kAll;
  int64_t offset = 0;  // -1: absent
  int64_t column = 0;  // first column of the value within its rows
  int64_t stride = 0;  // floats from row to row
};

struct Call {
  static Operand absent() { return {Operand::Arena::kAll, -1, 0, 0}; }

  enum class Kind : int {
    kEmbed,
    kLinear,
    kNormalize,
    kRope,
    kAttention,
    kExperts,
    kGatedActivation,
    kActivate,
    kAdd,
    kScale,
    kSoftcap,
    kSelectRows
  };
  enum class Index : int { kToken, kPosition, kFirst, kCount };  // the row of a table that an embedding takes
  Kind kind = Kind::kEmbed;
  Operand inputs[3] = {absent(), absent(), absent()};
  Operand output;
  Operand residual = absent();
  int64_t width = 0;                  // of the input (linear, norm) or the output (embed, element-wise)
  std::vector<PackedWeight> weights;  // of experts: gate, up and down of the first, of the second, ...
  std::vector<const float*> biases;
  NormArgs norm{};  // of a linear: an RMS norm of whole rows, or none
  bool is_gated = false;
  Activation activation = Activation::kSilu;
  Index index = Index::kToken;
  int rotary = -1;
  int64_t layer = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0;
  float factor = 0.0f;  // the scale of an attention, the factor of a scale, the cap of a softcap
  int64_t window = 0;
  float softcap = 0.0f;
  bool is_causal = true;
  ExpertsShape experts;
};

struct ExecutorConfig {
  int num_threads = 1;
  int64_t max_rows = 0;
  int64_t output_width = 0;
  int64_t all_floats = 0;       // arena floats per row
  int64_t selected_floats = 0;  // the same for selected rows
  int64_t num_layers = 0, num_blocks = 0, num_kv_heads = 0, head_dim = 0;
};

// The arrays of a ForwardBatch, checked by the caller.
struct Batch {
  const int32_t* token_ids;
  const int32_t* positions;
  const int32_t* row_sequence;
  int64_t num_rows;
  const int32_t* block_tables;
  int64_t blocks_per_sequence;
  const int32_t* logits_rows;
  int64_t num_selected;
};

// What was taken of one thread's share of a piece of work; a line of its own, since its thread writes it all the time.
struct alignas(64) WorkQueue {
  std::atomic<uint64_t> taken{0};
};

class Executor {
 public:
  // `attention` is one of `kernels`.
  Executor(const Kernels& kernels, const AttentionKernels& attention, const ExecutorConfig& config);

  // `frequencies`: radians per position of each pair; cosines and sines are multiplied by `magnitude`. Returns the
  // index that calls refer to.
  int add_rotary(std::vector<double> frequencies, bool is_interleaved, double magnitude);
  void add_call(Call call);
  // To be called once, after the last call was added.
  void finish(const Operand& output);

  // Runs the calls; the output [num_selected][output_width] stays valid until the next step.
  const float* forward(const Batch& batch);

  const Kernels& kernels() const { return kernels_; }
  const ExecutorConfig& config() const { return config_; }
  int64_t kv_bytes() const { return static_cast<int64_t>(cache_.size()); }
  // Nanoseconds that thread 0 spent in each call since the last reset, for profiles; collected only when enabled.
  std::vector<int64_t> call_ns;
  bool is_profiling = false;

 private:
  struct Rotary {
    std::vector<double> frequencies;
    bool is_interleaved;
    double magnitude;
    std::vector<float> cos_sin;
  };
  // A piece of rows of one span: stores stay within a block, attention within what a kernel takes at once.
  struct Piece {
    int32_t span;
    int32_t begin, end;
    int64_t num_positions = 0;  // that an attention sees at most
    int64_t results = 0;        // floats before those of its parts, [key/value heads][parts][rows][heads]
    int64_t num_parts() const { return (num_positions + kPartTokens - 1) / kPartTokens; }
  };
  // What one thread does of attends_[piece] when threads share positions; see AttentionKernels::attend_part.
  struct Part {
    int64_t piece;
    int64_t kv_head;
    int64_t part;
  };
  struct Step;

  void prepare(const Batch& batch);
  void prepare_attention(const Batch& batch);
  void split_attention();
  int64_t floats_of_part(const Piece& piece) const;
  void extend_rotary(int64_t num_positions);
  Matrix locate(const Operand& operand, const Batch& batch) const;
  int64_t rows_of(const Operand& operand, const Batch& batch) const;
  void run_call(const Call& call, Step& step);
  void run_linear(const Call& call, Step& step);
  void run_attention(const Call& call, Step& step);
  void run_split_attention(const AttentionArgs& args, Step& step);
  void run_experts(const Call& call, Step& step);
  void pack_experts(const Call& call, Step& step, bool is_hidden);
  void multiply_experts(const Call& call, Step& step, bool is_down);
  void run_element_wise(const Call& call, Step& step);
  RotaryArgs rotary_args(int index) const;
  AttentionArgs attention_args(const Call& call, const Batch& batch) const;

  std::mutex mutex_;  // one step at a time
  const Kernels& kernels_;
  const AttentionKernels& attention_;
  ExecutorConfig config_;
  std::vector<Call> calls_;
  std::vector<Rotary> rotaries_;
  Operand output_;
  int64_t max_inputs_ = 0;
  int64_t longest_group_ = 1;

  Buffer all_, selected_, packed_, scratch_, cache_;
  int64_t scratch_stride_ = 0, private_stride_ = 0;
  std::vector<Span> spans_;
  std::vector<Piece> stores_, attends_;
  std::vector<Part> parts_;  // empty: every piece is attended to in one call
  Buffer part_results_;
  ExpertRoutes routes_;
  std::vector<WorkQueue> queues_;  // [2][threads]: of the piece of work in hand and of the next
};

}  // namespace subsecond
