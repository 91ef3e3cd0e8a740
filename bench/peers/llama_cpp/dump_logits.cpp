// Streams the logits of every position of fixed-length token windows, each window evaluated from an empty KV cache.
//
//   dump_logits model.gguf tokens.bin output num_threads        (output "-" is stdout)
//
// tokens.bin: int32 num_windows, int32 window_len, then num_windows * window_len ids.
// output: int32 num_windows, window_len, num_vocab, then float32 [num_windows][window_len][num_vocab].

#include <cerrno>
#include <cstring>

#include "session.hpp"

namespace {

constexpr int32_t max_batch = 512;

struct Windows {
  int32_t num_windows = 0;
  int32_t window_len = 0;
  std::vector<int32_t> ids;
};

Windows read_windows(const std::string& path) {
  Windows windows;
  windows.ids = peer::read_int32(path);
  if (windows.ids.size() < 2) throw std::runtime_error(path + ": shorter than its two-value header");
  windows.num_windows = windows.ids[0];
  windows.window_len = windows.ids[1];
  windows.ids.erase(windows.ids.begin(), windows.ids.begin() + 2);
  const int64_t num_ids = static_cast<int64_t>(windows.num_windows) * windows.window_len;
  if (windows.num_windows < 1 || windows.window_len < 1 || num_ids != static_cast<int64_t>(windows.ids.size())) {
    throw std::runtime_error(path + ": header says " + std::to_string(windows.num_windows) + " windows of " +
                             std::to_string(windows.window_len) + " ids, but " + std::to_string(windows.ids.size()) +
                             " ids follow");
  }
  return windows;
}

void write_all(std::FILE* output, const void* bytes, size_t num_bytes) {
  if (std::fwrite(bytes, 1, num_bytes, output) != num_bytes) {
    throw std::runtime_error(std::string("writing the output failed: ") + std::strerror(errno));
  }
}

void write_window(peer::Session& session, const int32_t* ids, int32_t window_len, std::FILE* output) {
  session.clear();
  llama_batch batch = llama_batch_init(session.batch_limit(), 0, 1);
  const std::unique_ptr<llama_batch, void (*)(llama_batch*)> guard(&batch, [](auto* b) { llama_batch_free(*b); });
  for (int32_t start = 0; start < window_len; start += session.batch_limit()) {
    batch.n_tokens = std::min(session.batch_limit(), window_len - start);
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
      batch.token[i] = ids[start + i];
      batch.pos[i] = start + i;
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = 0;
      batch.logits[i] = 1;
    }
    session.evaluate(batch);
    const size_t num_values = static_cast<size_t>(batch.n_tokens) * session.num_vocab();
    write_all(output, llama_get_logits(session.context()), num_values * sizeof(float));
  }
}

void dump(const std::string& model_path, const std::string& tokens_path, const std::string& output_path,
          int32_t num_threads) {
  const Windows windows = read_windows(tokens_path);
  const uint32_t window_len = static_cast<uint32_t>(windows.window_len);
  peer::Session session(model_path, window_len, std::min<uint32_t>(window_len, max_batch), num_threads);
  session.check_ids(windows.ids.data(), windows.ids.size());
  std::FILE* output = output_path == "-" ? stdout : std::fopen(output_path.c_str(), "wb");
  if (!output) throw std::runtime_error(output_path + ": " + std::strerror(errno));
  const int32_t header[3] = {windows.num_windows, windows.window_len, session.num_vocab()};
  write_all(output, header, sizeof(header));
  for (int32_t window = 0; window < windows.num_windows; ++window) {
    const int32_t* ids = windows.ids.data() + static_cast<size_t>(window) * window_len;
    write_window(session, ids, windows.window_len, output);
  }
  if (std::fclose(output) != 0) throw std::runtime_error(output_path + ": " + std::strerror(errno));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: dump_logits model.gguf tokens.bin output|- num_threads\n");
    return 2;
  }
  try {
    dump(argv[1], argv[2], argv[3], peer::parse_count("num_threads", argv[4], 1, 1024));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dump_logits: %s\n", error.what());
    return 1;
  }
  return 0;
}
