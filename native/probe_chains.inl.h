// Loops for measuring the machine; included by the probe of every instruction set, inside its namespace.

constexpr int kChains = 12;  // covers the latency of a multiply-add on two ports

// Each round runs `step` on every chain once. The sums are variables of their own and not an array, which gcc keeps in
// memory; one chain never waits for another.
template <class V, class Step>
[[gnu::always_inline]] static inline void run_chains(int64_t num_rounds, V zero, Step step) {
  V a = zero, b = zero, c = zero, d = zero, e = zero, f = zero;
  V g = zero, h = zero, i = zero, j = zero, k = zero, l = zero;
  keep(a), keep(b), keep(c), keep(d), keep(e), keep(f);  // or the compiler takes equal chains for one
  keep(g), keep(h), keep(i), keep(j), keep(k), keep(l);
  for (int64_t round = 0; round < num_rounds; ++round) {
    step(a), step(b), step(c), step(d), step(e), step(f);
    step(g), step(h), step(i), step(j), step(k), step(l);
  }
  keep(a), keep(b), keep(c), keep(d), keep(e), keep(f);
  keep(g), keep(h), keep(i), keep(j), keep(k), keep(l);
}

// A sum of the words of kReadStreams parts of [data, data + num_bytes), which are read side by side.
template <class V, class Load, class Add>
[[gnu::always_inline]] static inline V read_streams(const uint8_t* data, int64_t num_bytes, V zero, Load load,
                                                    Add add) {
  constexpr int64_t kLine = 64;
  const int64_t part = num_bytes / kReadStreams;
  V first = zero, second = zero, third = zero, fourth = zero;
  for (int64_t line = 0; line < part; line += kLine) {
    const uint8_t* p = data + line;
    for (int s = 0; s < kReadStreams; ++s) __builtin_prefetch(p + s * part + kPrefetchBytes, 0, 2);
    for (int64_t at = 0; at < kLine; at += static_cast<int64_t>(sizeof(V))) {
      first = add(first, load(p + at));
      second = add(second, load(p + part + at));
      third = add(third, load(p + 2 * part + at));
      fourth = add(fourth, load(p + 3 * part + at));
    }
  }
  return add(add(first, second), add(third, fourth));
}
