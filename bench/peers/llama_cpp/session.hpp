// A loaded model with one context, and the reading of token-id files, for the programs of this folder.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "llama.h"

namespace peer {

// Every int32 of a little-endian file. Throws std::runtime_error when the file cannot be read or is no row of int32.
inline std::vector<int32_t> read_int32(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff num_bytes = file ? static_cast<std::streamoff>(file.tellg()) : -1;
  if (num_bytes < 0 || num_bytes % sizeof(int32_t) != 0) {
    throw std::runtime_error(path + ": not a readable file of int32 values");
  }
  std::vector<int32_t> values(static_cast<size_t>(num_bytes) / sizeof(int32_t));
  file.seekg(0);
  if (!file.read(reinterpret_cast<char*>(values.data()), num_bytes)) {
    throw std::runtime_error(path + ": could not be read to its end");
  }
  return values;
}

// The value of a command-line argument that must be a whole number in [min, max].
inline int32_t parse_count(const char* name, const std::string& text, int32_t min, int32_t max) {
  size_t end = 0;
  long value = -1;
  try {
    value = std::stol(text, &end);
  } catch (const std::exception&) {
    end = 0;
  }
  if (end != text.size() || text.empty() || value < min || value > max) {
    throw std::runtime_error(std::string(name) + ": got '" + text + "', allowed is a whole number from " +
                             std::to_string(min) + " to " + std::to_string(max));
  }
  return static_cast<int32_t>(value);
}

// Model and context with llama.cpp's default settings: f16 KV, flash attention where the backend has it, mapped file,
// repacked weights. Only the context length, the batch limit, the sequences and the threads are ours.
class Session {
 public:
  // num_context_tokens is that of one sequence.
  Session(const std::string& model_path, uint32_t num_context_tokens, uint32_t max_batch, int32_t num_threads,
          uint32_t num_sequences = 1) {
    llama_backend_init();
    model_.reset(llama_model_load_from_file(model_path.c_str(), llama_model_default_params()));
    if (!model_) throw std::runtime_error(model_path + ": llama.cpp could not load this model");
    llama_context_params params = llama_context_default_params();
    params.n_ctx = num_context_tokens * num_sequences;
    params.n_seq_max = num_sequences;
    params.n_batch = std::min(max_batch, params.n_batch);
    params.n_threads = num_threads;
    params.n_threads_batch = num_threads;
    context_.reset(llama_init_from_model(model_.get(), params));
    if (!context_) throw std::runtime_error(model_path + ": llama.cpp could not create a context");
    num_vocab_ = llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
    batch_limit_ = static_cast<int32_t>(llama_n_batch(context_.get()));
  }

  int32_t num_vocab() const { return num_vocab_; }
  int32_t batch_limit() const { return batch_limit_; }
  llama_context* context() const { return context_.get(); }
  void clear() { llama_memory_clear(llama_get_memory(context_.get()), true); }

  // Throws std::runtime_error for the first id outside the vocabulary.
  void check_ids(const int32_t* ids, size_t num_ids) const {
    for (size_t i = 0; i < num_ids; ++i) {
      if (ids[i] < 0 || ids[i] >= num_vocab_) {
        throw std::runtime_error("token id " + std::to_string(ids[i]) + " at index " + std::to_string(i) +
                                 " is outside the vocabulary of " + std::to_string(num_vocab_));
      }
    }
  }

  // Evaluates one batch and waits for it. Throws std::runtime_error when llama.cpp refuses it.
  void evaluate(const llama_batch& batch) {
    const int32_t status = llama_decode(context_.get(), batch);
    if (status != 0) throw std::runtime_error("llama_decode returned " + std::to_string(status));
    llama_synchronize(context_.get());
  }

 private:
  struct Free {
    void operator()(llama_model* model) const { llama_model_free(model); }
    void operator()(llama_context* context) const { llama_free(context); }
  };
  std::unique_ptr<llama_model, Free> model_;
  std::unique_ptr<llama_context, Free> context_;  // declared after the model, so freed before it
  int32_t num_vocab_ = 0;
  int32_t batch_limit_ = 0;
};

}  // namespace peer
