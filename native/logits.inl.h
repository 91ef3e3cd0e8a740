// Reductions over a row of logits, for the sampler; included by f32_kernels.inl.h. NaN counts as -inf.

// -inf for NaN and for lanes behind the end of the row.
static inline V only_numbers(V v, int64_t left) {
  v = V::max(v, V::set1(-__builtin_inff()));  // of two unordered values the second
  return left >= 16 ? v : V::keep_first(v, lanes_left(left), -__builtin_inff());
}

// The largest of every kLogitsBlock values.
static void block_maxima(const float* logits, int64_t width, float* maxima) {
  for (int64_t begin = 0; begin < width; begin += kLogitsBlock) {
    const int64_t end = begin + kLogitsBlock < width ? begin + kLogitsBlock : width;
    V largest = V::set1(-__builtin_inff());
    for (int64_t k = begin; k < end; k += 16)
      largest = V::max(only_numbers(load_lanes(logits + k, end - k), end - k), largest);
    *maxima++ = V::largest(largest);
  }
}

// The sum of e^((logit - peak) * scale). What is far below a peak counts e^-87 instead of nothing, which no sum shows.
static double sum_exp(const float* logits, int64_t width, float peak, float scale) {
  double total = 0.0;
  for (int64_t begin = 0; begin < width; begin += kLogitsBlock) {
    const int64_t end = begin + kLogitsBlock < width ? begin + kLogitsBlock : width;
    V sum = V::set1(0.0f);
    for (int64_t k = begin; k < end; k += 16) {
      const V below = V::sub(load_lanes(logits + k, end - k), V::set1(peak));
      sum = V::add(sum, exp_v(only_numbers(V::mul(below, V::set1(scale)), end - k)));
    }
    total += V::sum(sum);
  }
  return total;
}
