// The sampler with arbitrary parameters, penalties and logits: every drawn token lies in the vocabulary.
#include <cmath>
#include <cstdio>

#include "sampler.h"
#include "stream.h"

namespace subsecond::fuzz {
namespace {

std::vector<int32_t> offsets(Stream& stream, int64_t num_rows) {
  std::vector<int32_t> found{0};
  for (int64_t row = 0; row < num_rows; ++row) found.push_back(found.back() + stream.byte() % 4);
  return found;
}

std::vector<int32_t> whole(Stream& stream, int64_t count, int64_t limit) {
  std::vector<int32_t> values(static_cast<size_t>(count));
  for (int32_t& value : values)
    value = limit > 0 ? static_cast<int32_t>(stream.random() % static_cast<uint64_t>(limit))
                      : static_cast<int32_t>(stream.random() << (stream.random() % 32));
  return values;
}

void run(Stream stream) {
  const int64_t rows = stream.between(1, 3), vocab_size = stream.between(1, stream.flag() ? 40 : 1500);
  const int64_t num_logprobs = stream.flag() ? stream.between(0, vocab_size) : 0;
  const std::vector<int32_t> bias_offsets = offsets(stream, rows), history_offsets = offsets(stream, rows);
  const bool is_tame = stream.flag();
  stream.start_numbers();
  std::vector<float> logits = stream.numbers(rows * vocab_size);
  if (stream.flag()) std::fill(logits.begin(), logits.end(), stream.number());
  const std::vector<float> parameters = stream.numbers(6 * rows);
  const std::vector<int32_t> top_k = whole(stream, rows, is_tame ? vocab_size + 2 : 0);
  const std::vector<int32_t> sample_index = whole(stream, rows, 0), position = whole(stream, rows, 0);
  std::vector<uint64_t> seed(static_cast<size_t>(rows), uint64_t{stream.random()} << 32);
  const std::vector<int32_t> bias_ids = whole(stream, bias_offsets.back(), vocab_size),
                             history_ids = whole(stream, history_offsets.back(), vocab_size),
                             history_counts = whole(stream, history_offsets.back(), is_tame ? 4 : 0);
  const std::vector<float> bias_values = stream.numbers(bias_offsets.back());
  const float* p = parameters.data();
  const SampleInput input{logits.data(),
                          rows,
                          vocab_size,
                          p,
                          top_k.data(),
                          p + rows,
                          p + 2 * rows,
                          p + 3 * rows,
                          p + 4 * rows,
                          p + 5 * rows,
                          seed.data(),
                          sample_index.data(),
                          position.data(),
                          bias_offsets.data(),
                          bias_ids.data(),
                          bias_values.data(),
                          history_offsets.data(),
                          history_ids.data(),
                          history_counts.data(),
                          num_logprobs};
  std::vector<int32_t> token_ids(static_cast<size_t>(rows), -1), top_ids(static_cast<size_t>(rows * num_logprobs), -1);
  std::vector<float> logprobs(token_ids.size()), top_logprobs(top_ids.size());
  sample(input, {token_ids.data(), logprobs.data(), top_ids.data(), top_logprobs.data()});
  for (const std::vector<int32_t>& ids : {token_ids, top_ids})
    for (const int32_t id : ids)
      if (id < 0 || id >= vocab_size) {
        std::fprintf(stderr, "token %d of a vocabulary of %ld\n", id, static_cast<long>(vocab_size));
        std::abort();
      }
}

}  // namespace
}  // namespace subsecond::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  subsecond::fuzz::run(subsecond::fuzz::Stream(data, size));
  return 0;
}
