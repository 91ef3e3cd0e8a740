"""Same prompt and seed, same bytes, with real weights, whatever threads, chunks, neighbours and prefix cache."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from subsecond.backends import native
from subsecond.backends.protocol import Backend
from subsecond.engine.local import LocalEngine
from subsecond.engine.request import Request, SamplingParams
from subsecond.measure.evaluation import forward_windows
from subsecond.models.checkpoint import Checkpoint, open_checkpoint
from tests.parity.kernel_cases import ISAS

pytestmark = pytest.mark.real_model
FAST_ISAS = [isa for isa in ISAS if isa != "scalar"]
TEXT = (Path(__file__).parents[1] / "data" / "moby_dick.txt").read_text()


@pytest.fixture(scope="module")
def checkpoint(smollm2_path: Path) -> Checkpoint:
    return open_checkpoint(os.environ.get("SUBSECOND_ACCEPTANCE_MODEL") or smollm2_path)


def check_chunks(
    checkpoint: Checkpoint,
    isa: str,
    length: int,
    chunks: tuple[int, ...],
    weights: native.Weights = "stored",
    kv: native.Kv | None = None,
) -> None:
    window = np.array(checkpoint.tokenizer.encode(TEXT)[:length], np.int32)[np.newaxis]
    expected = None
    for num_threads in (1, 2):
        backend = native.load(
            checkpoint, isa=isa, num_threads=num_threads, context_tokens=length, max_rows=512, weights=weights, kv=kv
        )
        for chunk in chunks:
            (logits,) = forward_windows(backend, window, chunk)
            expected = logits if expected is None else expected
            np.testing.assert_array_equal(logits, expected, err_msg=f"{num_threads} threads, chunks of {chunk}")


@pytest.mark.parametrize("isa", FAST_ISAS)
def test_threads_and_chunks_keep_every_bit(isa: str, checkpoint: Checkpoint) -> None:
    check_chunks(checkpoint, isa, 96, (96, 64, 16, 1))


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("isa", FAST_ISAS)
def test_threads_and_chunks_keep_every_bit_of_lossy_weights(
    isa: str, weights: native.Weights, checkpoint: Checkpoint
) -> None:
    check_chunks(checkpoint, isa, 70, (70, 16, 1), weights)


@pytest.mark.parametrize("isa", FAST_ISAS)
def test_threads_and_chunks_keep_every_bit_of_int8_keys_and_values(isa: str, checkpoint: Checkpoint) -> None:
    check_chunks(checkpoint, isa, 70, (70, 16, 1), kv="int8")


@pytest.mark.acceptance
@pytest.mark.parametrize("isa", FAST_ISAS)
def test_threads_and_long_chunks_keep_every_bit(isa: str, checkpoint: Checkpoint) -> None:
    check_chunks(checkpoint, isa, 700, (512, 64, 16, 1))


def requests(checkpoint: Checkpoint, count: int) -> list[Request]:
    ids = checkpoint.tokenizer.encode(TEXT)
    params = [
        SamplingParams(temperature=0.9 if i % 2 else 0.0, top_p=0.95, seed=i, max_tokens=24) for i in range(count)
    ]
    return [Request(tuple(ids[40 * i : 40 * i + 30 + 9 * i]), p, f"r{i}") for i, p in enumerate(params)]


@pytest.mark.parametrize("isa", FAST_ISAS)
def test_neighbours_in_the_step_keep_every_token(isa: str, checkpoint: Checkpoint) -> None:
    wanted = requests(checkpoint, 8)
    alone = []
    for request in wanted:
        backend = native.load(checkpoint, isa=isa, context_tokens=2048)
        engine = LocalEngine(backend, context_length=2048, prefix_cache=False)
        alone.append([event.token_id for event in engine.submit(request)])
        engine.close()
        backend.close()
    for max_rows, has_prefix_cache in ((512, False), (16, True)):
        backend = native.load(checkpoint, isa=isa, context_tokens=2048)
        engine = LocalEngine(backend, context_length=2048, max_rows=max_rows, prefix_cache=has_prefix_cache)
        streams = [engine.submit(request) for request in wanted]
        together = [[event.token_id for event in stream] for stream in streams]
        engine.close()
        backend.close()
        assert together == alone


def mixed_requests(checkpoint: Checkpoint, count: int) -> list[Request]:
    """Short and long prompts, some with a common start; greedy and sampled; half end by their own length."""
    ids = checkpoint.tokenizer.encode(TEXT)
    choose = random.Random(5)
    found = []
    for index in range(count):
        start = choose.randrange(len(ids) - 300)
        shared = ids[: choose.choice((0, 0, 70, 140))]
        settings: dict[str, Any] = {"max_tokens": choose.randrange(4, 20), "seed": index}
        if index % 2:
            settings |= {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": choose.choice((1.0, 1.2))}
        prompt = (*shared, *ids[start : start + choose.randrange(1, 160)])
        found.append(Request(prompt, SamplingParams(**settings), f"m{index}"))
    return found


def answers_of(backend: Backend, wanted: list[Request], width: int, **options: Any) -> list[list[int | None]]:
    """All answers, `width` requests at a time."""
    engine = LocalEngine(backend, context_length=2048, **options)
    found = []
    for start in range(0, len(wanted), width):
        streams = [engine.submit(request) for request in wanted[start : start + width]]
        found += [[event.token_id for event in stream] for stream in streams]
    engine.close()
    return found


def check_every_company(checkpoint: Checkpoint, count: int, widths: tuple[int, ...]) -> None:
    wanted = mixed_requests(checkpoint, count)
    backend = native.load(checkpoint, context_tokens=4096)
    expected = None
    for width in widths:
        for max_rows in (64, 512):
            for prefix_cache in (False, True):
                found = answers_of(backend, wanted, width, max_rows=max_rows, prefix_cache=prefix_cache)
                expected = expected or found
                assert found == expected, f"{width} at a time, {max_rows} rows, prefix cache {prefix_cache}"
    backend.close()


def test_one_answer_whatever_batch_chunk_and_cache(checkpoint: Checkpoint) -> None:
    check_every_company(checkpoint, 6, (1, 6))


@pytest.mark.acceptance
def test_one_answer_of_each_of_200_prompts(checkpoint: Checkpoint) -> None:
    check_every_company(checkpoint, 200, (1, 2, 8, 16))
