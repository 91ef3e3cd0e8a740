// Times greedy generations of sequences decoded together: load, prefill, then every decode step. Prints one JSON
// object.
//
//   time_decode model.gguf prompts.bin num_tokens num_threads num_warmups num_sequences
//
// prompts.bin: the prompts' ids as int32, one after the other, all of one length. num_tokens ids are picked for each
// sequence, end-of-sequence ids included: the first from the prefill's logits, so num_tokens - 1 decode steps are
// timed. A step is evaluation of one batch with an id of every sequence, plus greedy picks. A warm-up is an untimed
// prefill, of as many rows in all as one prompt has, and up to 4 steps; with none, load_ms + prefill_ms is the time to
// the first token of a fresh process.

#include <sys/resource.h>

#include <array>
#include <chrono>

#include "session.hpp"

namespace {

using Clock = std::chrono::steady_clock;

double elapsed_ms(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// Index of the first largest logit. Sixteen independent maxima let the compiler use vector registers, so that the
// pick costs the peer next to nothing even with a large vocabulary.
int32_t pick_greedy(const float* logits, int32_t num_vocab) {
  std::array<float, 16> lanes;
  lanes.fill(logits[0]);
  int32_t i = 0;
  for (; i + 16 <= num_vocab; i += 16) {
    for (int32_t lane = 0; lane < 16; ++lane) {
      lanes[lane] = lanes[lane] < logits[i + lane] ? logits[i + lane] : lanes[lane];
    }
  }
  float largest = *std::max_element(lanes.begin(), lanes.end());
  for (; i < num_vocab; ++i) largest = std::max(largest, logits[i]);
  return static_cast<int32_t>(std::find(logits, logits + num_vocab, largest) - logits);
}

struct Timing {
  double prefill_ms = 0;
  std::vector<double> step_ms;
  std::vector<int32_t> token_ids;  // of the first sequence
};

class Batch {
 public:
  explicit Batch(int32_t capacity) : batch_(llama_batch_init(capacity, 0, 1)) {}
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;
  ~Batch() { llama_batch_free(batch_); }

  const llama_batch& get() const { return batch_; }
  void clear() { batch_.n_tokens = 0; }
  void add(int32_t id, int32_t position, int32_t sequence, bool wants_logits) {
    const int32_t row = batch_.n_tokens++;
    batch_.token[row] = id;
    batch_.pos[row] = position;
    batch_.n_seq_id[row] = 1;
    batch_.seq_id[row][0] = sequence;
    batch_.logits[row] = wants_logits;
  }

 private:
  llama_batch batch_;
};

// Evaluates the prompt of one sequence in pieces and picks its first id.
int32_t prefill(peer::Session& session, Batch& batch, const int32_t* prompt, int32_t num_prompt, int32_t sequence) {
  for (int32_t done = 0; done < num_prompt; done += batch.get().n_tokens) {
    const int32_t end = std::min(num_prompt, done + session.batch_limit());
    batch.clear();
    for (int32_t i = done; i < end; ++i) batch.add(prompt[i], i, sequence, i + 1 == num_prompt);
    session.evaluate(batch.get());
  }
  return pick_greedy(llama_get_logits_ith(session.context(), -1), session.num_vocab());
}

// Uses the first num_prompt ids of every prompt.
Timing generate(peer::Session& session, const std::vector<int32_t>& prompts, int32_t num_sequences, int32_t num_prompt,
                int32_t num_tokens) {
  Timing timing;
  session.clear();
  Batch batch(std::max(session.batch_limit(), num_sequences));
  const size_t stride = prompts.size() / num_sequences;
  std::vector<int32_t> ids;
  Clock::time_point start = Clock::now();
  for (int32_t i = 0; i < num_sequences; ++i) {
    ids.push_back(prefill(session, batch, prompts.data() + i * stride, num_prompt, i));
  }
  timing.prefill_ms = elapsed_ms(start);
  timing.token_ids.push_back(ids[0]);
  for (int32_t step = 0; step + 1 < num_tokens; ++step) {
    start = Clock::now();
    batch.clear();
    for (int32_t i = 0; i < num_sequences; ++i) batch.add(ids[i], num_prompt + step, i, true);
    session.evaluate(batch.get());
    for (int32_t i = 0; i < num_sequences; ++i) {
      ids[i] = pick_greedy(llama_get_logits_ith(session.context(), i), session.num_vocab());
    }
    timing.step_ms.push_back(elapsed_ms(start));
    timing.token_ids.push_back(ids[0]);
  }
  return timing;
}

template <typename T>
void print_list(const char* name, const std::vector<T>& values, const char* format) {
  std::printf("\"%s\": [", name);
  for (size_t i = 0; i < values.size(); ++i) {
    if (i > 0) std::printf(", ");
    std::printf(format, values[i]);
  }
  std::printf("], ");
}

void time_decode(const std::string& model_path, const std::string& prompts_path, int32_t num_tokens,
                 int32_t num_threads, int32_t num_warmups, int32_t num_sequences) {
  const std::vector<int32_t> prompts = peer::read_int32(prompts_path);
  if (prompts.empty() || prompts.size() > (1u << 20) || prompts.size() % num_sequences != 0) {
    throw std::runtime_error(prompts_path + ": prompts have 1 to 1048576 ids, the same number each; there are " +
                             std::to_string(prompts.size()) + " for " + std::to_string(num_sequences) + " sequences");
  }
  const Clock::time_point start = Clock::now();
  const int32_t num_prompt = static_cast<int32_t>(prompts.size()) / num_sequences;
  peer::Session session(model_path, num_prompt + num_tokens, UINT32_MAX, num_threads, num_sequences);
  const double load_ms = elapsed_ms(start);
  session.check_ids(prompts.data(), prompts.size());
  for (int32_t i = 0; i < num_warmups; ++i) {
    generate(session, prompts, num_sequences, std::max(1, num_prompt / num_sequences), std::min(num_tokens, 5));
  }
  const Timing timing = generate(session, prompts, num_sequences, num_prompt, num_tokens);
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::printf("{\"load_ms\": %.4f, \"prefill_ms\": %.4f, ", load_ms, timing.prefill_ms);
  print_list("step_ms", timing.step_ms, "%.4f");
  print_list("token_ids", timing.token_ids, "%d");
  std::printf("\"peak_rss_bytes\": %lld, ", static_cast<long long>(usage.ru_maxrss) * 1024);
  std::printf("\"system_info\": \"%s\"}\n", llama_print_system_info());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) {
    std::fprintf(stderr,
                 "usage: time_decode model.gguf prompts.bin num_tokens num_threads num_warmups num_sequences\n");
    return 2;
  }
  try {
    const int32_t num_tokens = peer::parse_count("num_tokens", argv[3], 1, 1 << 20);
    const int32_t num_threads = peer::parse_count("num_threads", argv[4], 1, 1024);
    const int32_t num_warmups = peer::parse_count("num_warmups", argv[5], 0, 100);
    const int32_t num_sequences = peer::parse_count("num_sequences", argv[6], 1, 256);
    time_decode(argv[1], argv[2], num_tokens, num_threads, num_warmups, num_sequences);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "time_decode: %s\n", error.what());
    return 1;
  }
  return 0;
}
