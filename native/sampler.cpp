// The sampler: bias and penalties, log-probabilities, temperature, cuts, and a draw by inverse CDF with random numbers
// that depend on (seed, sample, position) alone.
#include "sampler.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <exception>
#include <functional>
#include <limits>
#include <mutex>
#include <span>
#include <vector>

#include "thread_pool.h"

namespace subsecond {
namespace {

constexpr float kNoLogit = -std::numeric_limits<float>::infinity();
constexpr int64_t kSharedLogits = 1 << 16;  // from this many on rows are shared among threads: tens of microseconds

// A row with the largest value of each kLogitsBlock of it, which lets later passes leave out most of the row.
struct Row {
  const Kernels& kernels;
  std::span<const float> logits;
  std::vector<float> block_maxima;
  float peak = kNoLogit;
  int32_t peak_id = 0;  // the lowest id that has the peak

  Row(const Kernels& row_kernels, std::span<const float> row)
      : kernels(row_kernels), logits(row), block_maxima((row.size() + kLogitsBlock - 1) / kLogitsBlock) {
    kernels.block_maxima(row.data(), static_cast<int64_t>(row.size()), block_maxima.data());
    const auto highest = std::max_element(block_maxima.begin(), block_maxima.end());
    peak = *highest;
    const auto found = std::find(row.begin() + (highest - block_maxima.begin()) * kLogitsBlock, row.end(), peak);
    if (found != row.end()) peak_id = static_cast<int32_t>(found - row.begin());
  }

  double sum_exp(float scale) const {
    return kernels.sum_exp(logits.data(), static_cast<int64_t>(logits.size()), peak, scale);
  }
};

// Philox 4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011): one block,
// counter (position, sample, 0, 0), key = seed. The first 53 bits as a fraction in [0, 1).
double uniform(uint64_t seed, int32_t sample_index, int32_t position) {
  uint32_t counter[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(sample_index), 0, 0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{0xD2511F53} * counter[0];
    const uint64_t second = uint64_t{0xCD9E8D57} * counter[2];
    counter[0] = static_cast<uint32_t>(second >> 32) ^ counter[1] ^ key[0];
    counter[1] = static_cast<uint32_t>(second);
    counter[2] = static_cast<uint32_t>(first >> 32) ^ counter[3] ^ key[1];
    counter[3] = static_cast<uint32_t>(first);
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return static_cast<double>(((uint64_t{counter[0]} << 32) | counter[1]) >> 11) * 0x1.0p-53;
}

struct Candidate {
  float logit;
  int32_t id;
};

bool is_likelier(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// A row from the most likely token down (lowest id first on a tie), put in order only as far as it is read.
class Ranking {
 public:
  explicit Ranking(const Row& row) : row_(row) {}

  // The token at `rank` in [0, vocab_size).
  const Candidate& at(int64_t rank) {
    while (rank >= num_sorted_) sort_more();
    return candidates_[static_cast<size_t>(rank)];
  }

 private:
  // Collects the tokens of at least `low` that are not collected yet. They rank after those that are.
  void collect(float low) {
    if (low >= collected_from_) return;
    for (size_t block = 0; block < row_.block_maxima.size(); ++block) {
      if (row_.block_maxima[block] < low) continue;
      const size_t begin = block * kLogitsBlock;
      const size_t end = std::min(begin + kLogitsBlock, row_.logits.size());
      for (size_t i = begin; i < end; ++i) {
        const float logit = row_.logits[i] == row_.logits[i] ? row_.logits[i] : kNoLogit;
        if (logit >= low && logit < collected_from_) candidates_.push_back({logit, static_cast<int32_t>(i)});
      }
    }
    collected_from_ = low;
  }

  // At least 64 tokens (one in each of as many blocks) and rarely many more reach the 64th largest block maximum.
  float first_threshold() const {
    std::vector<float> maxima = row_.block_maxima;
    const size_t index = std::min<size_t>(64, maxima.size()) - 1;
    std::nth_element(maxima.begin(), maxima.begin() + static_cast<int64_t>(index), maxima.end(), std::greater<>());
    return maxima[index];
  }

  void sort_more() {
    if (candidates_.empty()) collect(first_threshold());
    while (num_sorted_ == static_cast<int64_t>(candidates_.size())) {
      collect(depth_ > 32.0f ? kNoLogit : row_.peak - depth_);
      depth_ *= 2.0f;
    }
    const int64_t size = static_cast<int64_t>(candidates_.size());
    const int64_t end = std::min(size, num_sorted_ + std::max<int64_t>(128, num_sorted_));
    const auto first = candidates_.begin() + num_sorted_;
    const auto last = candidates_.begin() + end;
    if (end < size) std::nth_element(first, last, candidates_.end(), is_likelier);
    std::sort(first, last, is_likelier);
    num_sorted_ = end;
  }

  const Row& row_;
  float depth_ = 8.0f;
  float collected_from_ = std::numeric_limits<float>::infinity();
  std::vector<Candidate> candidates_;
  int64_t num_sorted_ = 0;
};

struct Cuts {
  double temperature;
  int64_t top_k;
  double top_p;
  double min_p;
};

// The draw of one row: the kept tokens are always the first ones of the ranking.
class Draw {
 public:
  Draw(const Row& row, const Cuts& cuts, Ranking& ranking) : row_(row), cuts_(cuts), ranking_(ranking) {
    const int64_t size = static_cast<int64_t>(row.logits.size());
    limit_ = cuts.top_k > 0 ? std::min(cuts.top_k, size) : size;
  }

  int32_t token(double random) {
    const double mass = kept_mass();
    const double target = random * mass;
    for (int64_t rank = 0; rank < limit_ && reach(rank); ++rank)
      if (cumulative_[static_cast<size_t>(rank)] > target) return ranking_.at(rank).id;
    // Rounding left the target at or above the whole mass: the last token that has any.
    return ranking_.at(static_cast<int64_t>(cumulative_.size()) - 1).id;
  }

 private:
  // Weight relative to the most likely token.
  double weight(float logit) const {
    return std::exp((static_cast<double>(logit) - static_cast<double>(row_.peak)) / cuts_.temperature);
  }

  // Extends the running sums to `rank`; false when the token there has no mass.
  bool reach(int64_t rank) {
    while (static_cast<int64_t>(cumulative_.size()) <= rank) {
      const double added = weight(ranking_.at(static_cast<int64_t>(cumulative_.size())).logit);
      if (!(added > 0.0)) return false;
      cumulative_.push_back((cumulative_.empty() ? 0.0 : cumulative_.back()) + added);
    }
    return true;
  }

  // Mass of the tokens that top_k left.
  double mass_before_top_p() {
    if (limit_ == static_cast<int64_t>(row_.logits.size())) {
      const float scale = static_cast<float>(std::min(1.0 / cuts_.temperature, 1e30));
      return row_.sum_exp(scale);
    }
    reach(limit_ - 1);
    return cumulative_.back();
  }

  // Applies the cuts in order, lowering limit_ to the number of kept tokens; returns their mass.
  double kept_mass() {
    const bool has_top_p = cuts_.top_p < 1.0;
    const bool has_min_p = cuts_.min_p > 0.0;
    const double mass = has_top_p || !has_min_p ? mass_before_top_p() : 0.0;
    if (!has_top_p && !has_min_p) return mass;
    for (int64_t rank = 0; rank < limit_; ++rank) {
      const bool is_kept = reach(rank) && (rank == 0 || !has_min_p || weight(ranking_.at(rank).logit) >= cuts_.min_p);
      if (!is_kept) {
        limit_ = rank;
        break;
      }
      if (has_top_p && cumulative_[static_cast<size_t>(rank)] >= cuts_.top_p * mass) {
        limit_ = rank + 1;
        break;
      }
    }
    return cumulative_[static_cast<size_t>(limit_ - 1)];
  }

  const Row& row_;
  Cuts cuts_;
  Ranking& ranking_;
  int64_t limit_ = 0;
  std::vector<double> cumulative_;
};

bool has_adjustments(const SampleInput& input, int64_t row) {
  const bool has_bias = input.bias_offsets[row + 1] > input.bias_offsets[row];
  const bool has_history = input.history_offsets[row + 1] > input.history_offsets[row];
  const bool has_penalty = input.repetition_penalty[row] != 1.0f || input.presence_penalty[row] != 0.0f ||
                           input.frequency_penalty[row] != 0.0f;
  return has_bias || (has_history && has_penalty);
}

void adjust(const SampleInput& input, int64_t row, std::span<float> logits) {
  for (int32_t i = input.bias_offsets[row]; i < input.bias_offsets[row + 1]; ++i)
    logits[static_cast<size_t>(input.bias_ids[i])] += input.bias_values[i];
  const float repetition = input.repetition_penalty[row];
  const float presence = input.presence_penalty[row];
  const float frequency = input.frequency_penalty[row];
  for (int32_t i = input.history_offsets[row]; i < input.history_offsets[row + 1]; ++i) {
    float& logit = logits[static_cast<size_t>(input.history_ids[i])];
    if (repetition != 1.0f) logit = logit > 0.0f ? logit / repetition : logit * repetition;
    const int32_t count = input.history_counts[i];
    if (count > 0) logit = (logit - presence) - frequency * static_cast<float>(count);
  }
}

void report_logprobs(Ranking& ranking, double log_total, int64_t count, int32_t* ids, float* logprobs) {
  for (int64_t rank = 0; rank < count; ++rank) {
    const Candidate& candidate = ranking.at(rank);
    ids[rank] = candidate.id;
    logprobs[rank] = static_cast<float>(static_cast<double>(candidate.logit) - log_total);
  }
}

// The row with -inf wherever its mask has no bit.
std::vector<float> masked(const SampleInput& input, int64_t mask_row, std::span<const float> logits) {
  const uint32_t* mask = input.masks + mask_row * mask_words(input.vocab_size);
  std::vector<float> allowed(logits.size(), kNoLogit);
  for (size_t begin = 0; begin < logits.size(); begin += 32) {
    uint32_t word = mask[begin / 32];
    if (logits.size() - begin < 32) word &= (uint32_t{1} << (logits.size() - begin)) - 1;
    for (; word != 0; word &= word - 1) {
      const size_t id = begin + static_cast<size_t>(std::countr_zero(word));
      allowed[id] = logits[id];
    }
  }
  return allowed;
}

int32_t draw(const SampleInput& input, int64_t row, const Row& values, Ranking& ranking) {
  if (!(input.temperature[row] > 0.0f)) return values.peak_id;
  const Cuts cuts{input.temperature[row], input.top_k[row], input.top_p[row], input.min_p[row]};
  return Draw(values, cuts, ranking).token(uniform(input.seed[row], input.sample_index[row], input.position[row]));
}

// The token of a row, or -1 when its mask leaves none that has a probability.
int32_t choose(const SampleInput& input, int64_t row, const Row& values, Ranking& ranking) {
  if (input.forced_ids && input.forced_ids[row] >= 0) return input.forced_ids[row];
  const int32_t mask_row = input.mask_rows ? input.mask_rows[row] : -1;
  if (mask_row < 0) return draw(input, row, values, ranking);
  const std::vector<float> allowed = masked(input, mask_row, values.logits);
  const Row allowed_values(*input.kernels, allowed);
  if (!std::isfinite(allowed_values.peak)) return -1;
  Ranking allowed_ranking(allowed_values);
  return draw(input, row, allowed_values, allowed_ranking);
}

// Draws one row, and nothing but that row decides the result.
void sample_row(const SampleInput& input, int64_t row, const SampleOutput& output) {
  const size_t vocab_size = static_cast<size_t>(input.vocab_size);
  std::span<const float> logits(input.logits + row * input.vocab_size, vocab_size);
  std::vector<float> adjusted;
  if (has_adjustments(input, row)) {
    adjusted.assign(logits.begin(), logits.end());
    adjust(input, row, adjusted);
    logits = adjusted;
  }
  int32_t* top_ids = output.top_ids + row * input.num_logprobs;
  float* top_logprobs = output.top_logprobs + row * input.num_logprobs;
  const Row values(*input.kernels, logits);
  Ranking ranking(values);
  const int32_t token = std::isfinite(values.peak) ? choose(input, row, values, ranking) : -1;
  output.has_failed[row] = token < 0;
  if (token < 0) {
    output.token_ids[row] = 0;
    output.logprobs[row] = kNoLogit;
    std::fill_n(top_ids, input.num_logprobs, 0);
    std::fill_n(top_logprobs, input.num_logprobs, kNoLogit);
    return;
  }
  const double log_total = static_cast<double>(values.peak) + std::log(values.sum_exp(1.0f));
  output.token_ids[row] = token;
  output.logprobs[row] = static_cast<float>(static_cast<double>(logits[static_cast<size_t>(token)]) - log_total);
  report_logprobs(ranking, log_total, input.num_logprobs, top_ids, top_logprobs);
}

}  // namespace

void sample(const SampleInput& input, const SampleOutput& output) {
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::once_flag has_error;
  const auto draw_rows = [&] {
    try {
      for (int64_t row; (row = next.fetch_add(1)) < input.num_rows;) sample_row(input, row, output);
    } catch (...) {  // no memory
      std::call_once(has_error, [&] { error = std::current_exception(); });
    }
  };
  if (input.num_threads > 1 && input.num_rows > 1 && input.num_rows * input.vocab_size >= kSharedLogits)
    ThreadPool::instance().run(input.num_threads, [&](int, Barrier&) { draw_rows(); });
  else
    draw_rows();
  if (error) std::rethrow_exception(error);
}

}  // namespace subsecond
