#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "executor_step.h"

namespace subsecond {
namespace {

constexpr int64_t kPrivateRows = 1;  // up to this many rows every thread packs activations for itself, saving a barrier
constexpr int64_t kPiecesPerThread = 4;  // of an attention, so that threads finish together
constexpr int64_t kMostPartBytes = int64_t{64} << 20;
constexpr int64_t kRotaryPositions = 512;  // added to a table at once: a fraction of a millisecond

int64_t index_of(Call::Index index, const Batch& batch, int64_t row) {
  if (index == Call::Index::kFirst) return 0;
  return index == Call::Index::kToken ? batch.token_ids[row] : batch.positions[row];
}

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

Executor::Executor(const Kernels& kernels, const AttentionKernels& attention, const ExecutorConfig& config)
    : kernels_(kernels),
      attention_(attention),
      config_(config),
      all_(static_cast<size_t>(config.all_floats * config.max_rows) * sizeof(float)),
      selected_(static_cast<size_t>(config.selected_floats * config.max_rows) * sizeof(float)),
      cache_(static_cast<size_t>(config.num_layers * config.num_blocks * config.num_kv_heads *
                                 attention.head_bytes(config.head_dim))) {}

int Executor::add_rotary(std::vector<double> frequencies, bool is_interleaved, double magnitude) {
  rotaries_.push_back({std::move(frequencies), is_interleaved, magnitude, {}});
  return static_cast<int>(rotaries_.size()) - 1;
}

void Executor::add_call(Call call) {
  if (call.kind == Call::Kind::kLinear || call.kind == Call::Kind::kEmbed)
    max_inputs_ = std::max(max_inputs_, call.width);
  if (call.kind == Call::Kind::kAttention)
    longest_group_ = std::max(longest_group_, call.num_heads / call.num_kv_heads);
  if (call.kind == Call::Kind::kExperts) {
    max_inputs_ = std::max({max_inputs_, call.experts.width, call.experts.ff_width});
    routes_.reserve(kernels_, call.experts, config_.max_rows);
  }
  calls_.push_back(std::move(call));
}

void Executor::finish(const Operand& output) {
  output_ = output;
  queues_ = std::vector<WorkQueue>(static_cast<size_t>(2 * config_.num_threads));
  routes_.allocate();
  call_ns.assign(calls_.size(), 0);
  const auto packed_bytes = [&](int64_t num_rows) {
    return std::max(kernels_.stored.activation_bytes(num_rows, max_inputs_),
                    kernels_.channel.activation_bytes(num_rows, max_inputs_));
  };
  packed_ = Buffer(static_cast<size_t>(packed_bytes(config_.max_rows)));
  private_stride_ = round_up(packed_bytes(kPrivateRows), 4096);
  scratch_stride_ = round_up(kernels_.scratch_bytes(max_inputs_, config_.head_dim), 4096) + private_stride_;
  scratch_ = Buffer(static_cast<size_t>(scratch_stride_ * config_.num_threads));
}

void Executor::extend_rotary(int64_t num_positions) {
  for (Rotary& rotary : rotaries_) {
    const int64_t pairs = static_cast<int64_t>(rotary.frequencies.size());
    const int64_t known = static_cast<int64_t>(rotary.cos_sin.size()) / (2 * pairs);
    if (known >= num_positions) continue;
    const int64_t wanted = round_up(num_positions, kRotaryPositions);
    rotary.cos_sin.resize(static_cast<size_t>(wanted * 2 * pairs));
    for (int64_t p = known; p < wanted; ++p)
      for (int64_t i = 0; i < pairs; ++i) {
        const double angle = static_cast<double>(p) * rotary.frequencies[static_cast<size_t>(i)];
        float* pair = rotary.cos_sin.data() + (p * pairs + i) * 2;
        pair[0] = static_cast<float>(std::cos(angle) * rotary.magnitude);
        pair[1] = static_cast<float>(std::sin(angle) * rotary.magnitude);
      }
  }
}

void Executor::prepare(const Batch& batch) {
  prepare_attention(batch);
  split_attention();
  int64_t num_positions = 0;
  for (const Piece& piece : attends_) num_positions = std::max(num_positions, piece.num_positions);
  extend_rotary(num_positions);
  for (WorkQueue& queue : queues_) queue.taken.store(0, std::memory_order_relaxed);
}

void Executor::prepare_attention(const Batch& batch) {
  spans_.clear();
  stores_.clear();
  attends_.clear();
  int64_t attend_rows = attention_.attend_rows(longest_group_);
  if (attention_.attend_part) {
    const int64_t fair = batch.num_rows * config_.num_kv_heads / (kPiecesPerThread * config_.num_threads);
    attend_rows = std::clamp<int64_t>(fair, 1, attend_rows);
  }
  for (int64_t row = 0; row < batch.num_rows;) {
    int64_t end = row + 1;
    while (end < batch.num_rows && batch.row_sequence[end] == batch.row_sequence[row]) ++end;
    const auto span = static_cast<int32_t>(spans_.size());
    spans_.push_back(
        {row, end, batch.positions[row], batch.block_tables + batch.row_sequence[row] * batch.blocks_per_sequence});
    for (int64_t begin = row; begin < end;) {
      const int64_t left = kBlockTokens - batch.positions[begin] % kBlockTokens;
      const int64_t stop = std::min(end, begin + left);
      stores_.push_back({span, static_cast<int32_t>(begin), static_cast<int32_t>(stop)});
      begin = stop;
    }
    // Late rows attend to most positions: hand them out first, so that the threads finish together.
    for (int64_t stop = end; stop > row; stop -= attend_rows)
      attends_.push_back({span, static_cast<int32_t>(std::max(row, stop - attend_rows)), static_cast<int32_t>(stop),
                          batch.positions[end - 1] + 1});
    row = end;
  }
}

// Threads share positions where the longest piece would keep one of them busy while others wait.
void Executor::split_attention() {
  parts_.clear();
  if (!attention_.attend_part) return;
  int64_t longest = 0, total = 0, num_floats = 0;
  for (Piece& piece : attends_) {
    const int64_t num_rows = piece.end - piece.begin;
    piece.results = num_floats;
    num_floats += config_.num_kv_heads * piece.num_parts() * floats_of_part(piece);
    total += num_rows * piece.num_positions;
    if (piece.num_parts() > 1) longest = std::max(longest, num_rows * piece.num_positions);
  }
  if (longest * kPiecesPerThread * config_.num_threads <= total * config_.num_kv_heads) return;
  const int64_t num_bytes = num_floats * static_cast<int64_t>(sizeof(float));
  if (num_bytes > kMostPartBytes) return;
  if (num_bytes > static_cast<int64_t>(part_results_.size()))
    part_results_ = Buffer(static_cast<size_t>(2 * num_bytes));
  // Neighbouring parts of a head follow each other, since a kernel fetches what it expects next.
  for (size_t i = 0; i < attends_.size(); ++i)
    for (int64_t head = 0; head < config_.num_kv_heads; ++head)
      for (int64_t part = 0; part < attends_[i].num_parts(); ++part)
        parts_.push_back({static_cast<int64_t>(i), head, part});
}

// Floats that one key/value head has of a part.
int64_t Executor::floats_of_part(const Piece& piece) const {
  return (piece.end - piece.begin) * longest_group_ * attention_.part_floats(config_.head_dim);
}

int64_t Executor::rows_of(const Operand& operand, const Batch& batch) const {
  return operand.arena == Operand::Arena::kAll ? batch.num_rows : batch.num_selected;
}

Matrix Executor::locate(const Operand& operand, const Batch& batch) const {
  if (operand.offset < 0) return {};
  const Buffer& arena = operand.arena == Operand::Arena::kAll ? all_ : selected_;
  return {arena.floats() + operand.offset * rows_of(operand, batch) + operand.column, operand.stride};
}

void Executor::run_linear(const Call& call, Step& step) {
  const int64_t num_rows = rows_of(call.inputs[0], step.batch);
  if (num_rows == 0) return;
  const bool is_private = num_rows <= kPrivateRows;
  const PackArgs pack{locate(call.inputs[0], step.batch),
                      num_rows,
                      call.width,
                      call.norm.weight,
                      call.norm.eps,
                      is_private ? step.private_packed : packed_.data()};
  const LinearKernels& kernels = kernels_.linear_of(call.weights[0].format);
  const auto pack_group = [&](int64_t group) { kernels.pack_rows(pack, group, group + 1, step.scratch); };
  if (is_private) {
    pack_group(0);
  } else {
    step.share((num_rows + kGroupRows - 1) / kGroupRows, pack_group);
    step.barrier.wait();
  }
  const LinearArgs args{pack.packed,
                        num_rows,
                        call.weights.data(),
                        call.biases.data(),
                        static_cast<int>(call.weights.size()),
                        call.is_gated,
                        call.activation,
                        locate(call.residual, step.batch),
                        locate(call.output, step.batch)};
  step.share(linear_units(args), [&](int64_t unit) { kernels.linear(args, unit, unit + 1, step.scratch); });
}

RotaryArgs Executor::rotary_args(int index) const {
  const Rotary& rotary = rotaries_[static_cast<size_t>(index)];
  return {rotary.cos_sin.data(), static_cast<int64_t>(2 * rotary.frequencies.size()), rotary.is_interleaved};
}

AttentionArgs Executor::attention_args(const Call& call, const Batch& batch) const {
  AttentionArgs args{};
  args.query = locate(call.inputs[0], batch);
  args.key = locate(call.inputs[1], batch);
  args.value = locate(call.inputs[2], batch);
  args.output = locate(call.output, batch);
  const int64_t head_bytes = attention_.head_bytes(call.head_dim);
  args.cache = {cache_.data() + call.layer * config_.num_blocks * config_.num_kv_heads * head_bytes, head_bytes};
  if (call.rotary >= 0) args.rotary = rotary_args(call.rotary);
  args.num_heads = call.num_heads;
  args.num_kv_heads = call.num_kv_heads;
  args.head_dim = call.head_dim;
  args.scale = call.factor;
  args.window = call.window;
  args.softcap = call.softcap;
  args.is_causal = call.is_causal;
  return args;
}

void Executor::run_attention(const Call& call, Step& step) {
  const AttentionArgs args = attention_args(call, step.batch);
  const auto each = [&](const std::vector<Piece>& pieces, auto kernel) {
    step.share(static_cast<int64_t>(pieces.size()) * call.num_kv_heads, [&](int64_t item) {
      const Piece& piece = pieces[static_cast<size_t>(item / call.num_kv_heads)];
      kernel(args, spans_[static_cast<size_t>(piece.span)], piece.begin, piece.end, item % call.num_kv_heads,
             step.scratch);
    });
  };
  each(stores_, attention_.store_kv);
  step.barrier.wait();
  if (parts_.empty())
    each(attends_, attention_.attend);
  else
    run_split_attention(args, step);
}

void Executor::run_split_attention(const AttentionArgs& args, Step& step) {
  const auto results_of = [&](const Piece& piece, int64_t head) {
    return part_results_.floats() + piece.results + head * piece.num_parts() * floats_of_part(piece);
  };
  step.share(static_cast<int64_t>(parts_.size()), [&](int64_t item) {
    const Part& part = parts_[static_cast<size_t>(item)];
    const Piece& piece = attends_[static_cast<size_t>(part.piece)];
    attention_.attend_part(args, spans_[static_cast<size_t>(piece.span)], piece.begin, piece.end, part.kv_head,
                           part.part, results_of(piece, part.kv_head) + part.part * floats_of_part(piece),
                           step.scratch);
  });
  step.barrier.wait();
  step.share(static_cast<int64_t>(attends_.size()) * args.num_kv_heads, [&](int64_t item) {
    const Piece& piece = attends_[static_cast<size_t>(item / args.num_kv_heads)];
    const int64_t head = item % args.num_kv_heads;
    attention_.merge_parts(args, spans_[static_cast<size_t>(piece.span)], piece.begin, piece.end, head,
                           results_of(piece, head), floats_of_part(piece), step.scratch);
  });
}

void Executor::run_element_wise(const Call& call, Step& step) {
  const Batch& batch = step.batch;
  const int64_t num_rows = rows_of(call.output, batch);
  const Matrix in = locate(call.inputs[0], batch), second = locate(call.inputs[1], batch),
               out = locate(call.output, batch);
  step.share(num_rows, [&](int64_t row) {
    switch (call.kind) {
      case Call::Kind::kEmbed:
        return kernels_.unpack_row(call.weights[0], index_of(call.index, batch, row), out.row(row));
      case Call::Kind::kNormalize:
        return kernels_.normalize(in, out, call.width, call.norm, row, row + 1);
      case Call::Kind::kRope:
        return kernels_.rope(in, out, rotary_args(call.rotary), call.head_dim, call.width / call.head_dim,
                             batch.positions, row, row + 1);
      case Call::Kind::kGatedActivation:
        return kernels_.gated_activation(in, second, out, call.width, call.activation, row, row + 1);
      case Call::Kind::kActivate:
        return kernels_.activate(in, out, call.width, call.activation, row, row + 1);
      case Call::Kind::kAdd:
        return kernels_.add(in, second, out, call.width, row, row + 1);
      case Call::Kind::kScale:
        return kernels_.scale(in, out, call.width, call.factor, row, row + 1);
      case Call::Kind::kSoftcap:
        return kernels_.softcap(in, out, call.width, call.factor, row, row + 1);
      default:
        std::memcpy(out.row(row), in.row(batch.logits_rows[row]), static_cast<size_t>(call.width) * sizeof(float));
    }
  });
}

void Executor::run_call(const Call& call, Step& step) {
  if (call.kind == Call::Kind::kLinear)
    run_linear(call, step);
  else if (call.kind == Call::Kind::kAttention)
    run_attention(call, step);
  else if (call.kind == Call::Kind::kExperts)
    run_experts(call, step);
  else
    run_element_wise(call, step);
  step.barrier.wait();
}

const float* Executor::forward(const Batch& batch) {
  std::lock_guard lock(mutex_);
  prepare(batch);
  const auto now = [] { return std::chrono::steady_clock::now().time_since_epoch().count(); };
  ThreadPool::instance().run(config_.num_threads, [&](int thread, Barrier& barrier) {
    uint8_t* scratch = scratch_.data() + thread * scratch_stride_;
    Step step{batch,
              thread,
              config_.num_threads,
              barrier,
              scratch,
              scratch + scratch_stride_ - private_stride_,
              queues_.data(),
              queues_.data() + config_.num_threads};
    for (size_t i = 0; i < calls_.size(); ++i) {
      const int64_t start = is_profiling && thread == 0 ? now() : 0;
      run_call(calls_[i], step);
      if (is_profiling && thread == 0) call_ns[i] += now() - start;
    }
  });
  return locate(output_, batch).data;
}

}  // namespace subsecond
