"""Times what a step costs in Python: the real engine on a native model so small that its kernels take next to nothing.

Run: python -m bench.step_overhead [--sequences 1,8,32] [--prompt 512] [--steps 300] [--evict 0]
Every part runs alone on one thread here, so that the figures are costs and not waits: the engine's own parts, the two
calls into the extension with their checks, and the reader that turns tokens into text. With --evict, that many MB are
read between steps, as the weights of a real model would be: what the step touches then comes from memory again.
Medians over the steps, in microseconds. A table goes to standard error, one JSON object to standard output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import MappingProxyType
from typing import Any

import numpy as np

from subsecond.backends.batch import SampleBatch, SampleResult
from subsecond.backends.native.backend import BLOCK_TOKENS, NativeBackend, NativeConfig
from subsecond.backends.native.weights import PackedMatrix, PackedWeights
from subsecond.engine.blocks import BlockAllocator
from subsecond.engine.request import Request, SamplingParams
from subsecond.engine.scheduler import Scheduler, Sequence
from subsecond.engine.step_loop import StepLoop
from subsecond.engine.stream import TokenStream
from subsecond.engine.text import TextChunk, TextStream
from subsecond.graph.graph import Graph
from subsecond.graph.memory import plan_memory
from subsecond.graph.ops import Embed, SelectRows, Value
from subsecond.graph.plan import Segment
from subsecond.models.detokenizer import StreamingDetokenizer
from subsecond.models.reasoning import ReasoningSplitter

VOCAB_SIZE = 256
WARMUP_STEPS = 50

Parts = dict[str, float]  # microseconds by name


def tiny_backend(num_blocks: int, max_rows: int) -> NativeBackend:
    """A model whose logits are the rows of its embedding, [VOCAB_SIZE, VOCAB_SIZE]."""
    ops = (Embed("hidden", "table"), SelectRows("logits", "hidden"))
    values = {"hidden": Value("hidden", VOCAB_SIZE), "logits": Value("logits", VOCAB_SIZE, "selected")}
    graph = Graph(ops, MappingProxyType(values), MappingProxyType({"table": (VOCAB_SIZE, VOCAB_SIZE)}), "logits")
    table = np.random.default_rng(0).normal(size=(VOCAB_SIZE, VOCAB_SIZE)).astype(np.float32)
    packed = table.reshape(VOCAB_SIZE // 16, 16, VOCAB_SIZE // 32, 32).swapaxes(1, 2).copy().view(np.uint8).reshape(-1)
    weights = PackedWeights({"table": PackedMatrix("F32", VOCAB_SIZE, VOCAB_SIZE, packed)}, {})
    return NativeBackend(
        Segment("native", "cpu", graph, plan_memory(graph)), weights, NativeConfig("", 1, max_rows, num_blocks)
    )


class ByteTokens:
    """A vocabulary of the printable characters of ASCII."""

    control_tokens: dict[str, int] = MappingProxyType({})  # type: ignore[assignment]

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([32 + token_id % 95])

    def is_special(self, token_id: int) -> bool:
        return token_id >= VOCAB_SIZE

    def decode(self, token_ids: Iterable[int], *, skip_special: bool = True) -> str:
        assert skip_special
        return b"".join(map(self.token_bytes, token_ids)).decode()


class Clock:
    """Adds up the time that wrapped functions take, by the name of their part."""

    def __init__(self) -> None:
        self.spent: Parts = {}

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        self.spent[part] = 0.0

        def timed(*args: Any) -> Any:
            start = time.perf_counter_ns()
            try:
                return function(*args)
            finally:
                self.spent[part] += (time.perf_counter_ns() - start) / 1e3

        return timed

    def take(self) -> Parts:
        spent, self.spent = self.spent, dict.fromkeys(self.spent, 0.0)
        return spent


class TimedBackend:
    """The two calls of a step, timed."""

    def __init__(self, backend: NativeBackend, clock: Clock) -> None:
        self.forward = clock.wrap("forward call", backend.forward)
        self.sample: Callable[[SampleBatch], SampleResult] = clock.wrap("sample call", backend.sample)


def reader_of(stream: TokenStream, prompt: tuple[int, ...]) -> Iterator[TextChunk]:
    """The chunks of one answer; the tokens are ASCII, so that every token gives one."""
    tokenizer = ByteTokens()
    splitter = ReasoningSplitter(None, tokenizer, prompt)
    return iter(TextStream(stream, StreamingDetokenizer(tokenizer), splitter=splitter))


def start(
    loop: StepLoop, num_sequences: int, num_prompt: int, params: SamplingParams
) -> list[tuple[TokenStream, Iterator[TextChunk]]]:
    """Begin that many answers and read what comes while their prompts are computed."""
    readers = []
    for index in range(num_sequences):
        prompt = tuple(np.random.default_rng(index).integers(0, VOCAB_SIZE, num_prompt).tolist())
        stream = TokenStream(str(index), seed=index, num_prompt_tokens=num_prompt, variant="", cancel=lambda _: None)
        length = num_prompt + (params.max_tokens or 0)
        loop.add(Sequence(Request(prompt, params, str(index)), index, length), stream)
        readers.append((stream, reader_of(stream, prompt)))
    while any(stream.num_tokens == 0 for stream, _ in readers):
        loop.step()
    for stream, reader in readers:
        for _ in range(stream.num_tokens):
            next(reader)
    return readers


def time_steps(num_sequences: int, num_prompt: int, num_steps: int, evicted_bytes: int) -> Parts:
    """Median microseconds a step of every part, with `num_sequences` answers growing together."""
    params = SamplingParams(max_tokens=num_prompt + WARMUP_STEPS + num_steps, ignore_eos=True)
    num_blocks = num_sequences * (-(-(2 * num_prompt + WARMUP_STEPS + num_steps) // BLOCK_TOKENS))
    backend, clock = tiny_backend(num_blocks, 512), Clock()
    allocator = BlockAllocator(num_blocks, BLOCK_TOKENS, variant=backend.variant)
    scheduler = Scheduler(allocator, backend.max_rows)
    loop = StepLoop(TimedBackend(backend, clock), scheduler, lambda _: None)  # type: ignore[arg-type]
    for part, owner, method in (
        ("scheduler", scheduler, "plan"),
        ("scheduler", scheduler, "commit"),
        ("batch builder", loop._builder, "forward_batch"),
        ("sample arguments", loop._builder, "sample_batch"),
    ):
        setattr(owner, method, clock.wrap(part, getattr(owner, method)))
    readers = start(loop, num_sequences, num_prompt, params)
    evicted = np.ones(evicted_bytes // 8)
    samples: list[Parts] = []
    for _ in range(WARMUP_STEPS + num_steps):
        evicted.sum()
        clock.take()
        begin = time.perf_counter_ns()
        loop.step()
        done = time.perf_counter_ns()
        for _, reader in readers:
            next(reader)
        parts = clock.take()
        parts["events"] = (done - begin) / 1e3 - sum(parts.values())
        parts["all of the engine"] = (done - begin) / 1e3
        parts["reading"] = (time.perf_counter_ns() - done) / 1e3
        samples.append(parts)
    backend.close()
    return {part: round(statistics.median(s[part] for s in samples[WARMUP_STEPS:]), 1) for part in samples[-1]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Microseconds of Python in a step.")
    parser.add_argument("--sequences", default="1,8,32")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--evict", type=int, default=0, help="MB to read between steps")
    options = parser.parse_args()
    found = {
        count: time_steps(count, options.prompt, options.steps, options.evict * 10**6)
        for count in map(int, options.sequences.split(","))
    }
    for part in next(iter(found.values())):
        print(f"{part:<18}" + "".join(f"{parts[part]:>9.1f}" for parts in found.values()), file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
