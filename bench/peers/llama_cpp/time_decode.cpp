// Times one greedy generation: load, prefill, then every decode step. Prints one JSON object on stdout.
//
//   time_decode model.gguf prompt.bin num_tokens num_threads num_warmups
//
// prompt.bin: the prompt's ids as int32. num_tokens ids are picked, end-of-sequence ids included: the first from the
// prefill's logits, so num_tokens - 1 decode steps are timed. A step is evaluation plus greedy pick. A warm-up is an
// untimed prefill and up to 8 steps; with none, load_ms + prefill_ms is the time to the first token of a fresh process.

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
  std::vector<int32_t> token_ids;
};

Timing generate(peer::Session& session, std::vector<int32_t>& prompt, int32_t num_tokens) {
  Timing timing;
  session.clear();
  const auto evaluate_and_pick = [&](int32_t* ids, int32_t num_ids) {
    session.evaluate(llama_batch_get_one(ids, num_ids));
    return pick_greedy(llama_get_logits_ith(session.context(), -1), session.num_vocab());
  };
  Clock::time_point start = Clock::now();
  const int32_t num_prompt = static_cast<int32_t>(prompt.size());
  int32_t done = 0;
  for (; num_prompt - done > session.batch_limit(); done += session.batch_limit()) {
    session.evaluate(llama_batch_get_one(prompt.data() + done, session.batch_limit()));
  }
  int32_t id = evaluate_and_pick(prompt.data() + done, num_prompt - done);
  timing.prefill_ms = elapsed_ms(start);
  timing.token_ids.push_back(id);
  while (static_cast<int32_t>(timing.token_ids.size()) < num_tokens) {
    start = Clock::now();
    id = evaluate_and_pick(&id, 1);
    timing.step_ms.push_back(elapsed_ms(start));
    timing.token_ids.push_back(id);
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

void time_decode(const std::string& model_path, const std::string& prompt_path, int32_t num_tokens, int32_t num_threads,
                 int32_t num_warmups) {
  std::vector<int32_t> prompt = peer::read_int32(prompt_path);
  if (prompt.empty() || prompt.size() > (1u << 20)) {
    throw std::runtime_error(prompt_path + ": a prompt has 1 to 1048576 ids, this one has " +
                             std::to_string(prompt.size()));
  }
  const Clock::time_point start = Clock::now();
  const uint32_t num_context_tokens = static_cast<uint32_t>(prompt.size()) + static_cast<uint32_t>(num_tokens);
  peer::Session session(model_path, num_context_tokens, UINT32_MAX, num_threads);
  const double load_ms = elapsed_ms(start);
  session.check_ids(prompt.data(), prompt.size());
  for (int32_t i = 0; i < num_warmups; ++i) generate(session, prompt, std::min(num_tokens, 9));
  const Timing timing = generate(session, prompt, num_tokens);
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
  if (argc != 6) {
    std::fprintf(stderr, "usage: time_decode model.gguf prompt.bin num_tokens num_threads num_warmups\n");
    return 2;
  }
  try {
    const int32_t num_tokens = peer::parse_count("num_tokens", argv[3], 1, 1 << 20);
    const int32_t num_threads = peer::parse_count("num_threads", argv[4], 1, 1024);
    const int32_t num_warmups = peer::parse_count("num_warmups", argv[5], 0, 100);
    time_decode(argv[1], argv[2], num_tokens, num_threads, num_warmups);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "time_decode: %s\n", error.what());
    return 1;
  }
  return 0;
}
