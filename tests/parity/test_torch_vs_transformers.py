"""The torch backend against transformers on small random models: every way to cut steps, before and after passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.quality.transformers_model import gguf_weights, random_model
from subsecond.backends.batch import Float32, ForwardBatch
from subsecond.backends.torch import TorchBackend
from subsecond.backends.torch.backend import execute
from subsecond.core.errors import FormatError
from subsecond.graph.graph import Graph
from subsecond.graph.passes.pipeline import PASSES, passes_until
from subsecond.models.config import ModelConfig
from subsecond.models.families.registry import build_graph

NUM_TOKENS = 23
BLOCK_TOKENS = 4
PASS_NAMES = ("none", *(name for name, _ in PASSES))


def tiny_config(family: str, head_dim: int) -> ModelConfig:
    return ModelConfig(
        family=family,
        name="tiny",
        num_layers=2,
        width=36,
        ff_width=70,
        num_heads=6,
        num_kv_heads=2,
        head_dim=head_dim,
        vocab_size=101,
        context_length=64,
        norm_eps=1e-5,
        rope_theta=500.0,
        rope_dims=head_dim,
        rope_pairing="interleaved" if family == "llama" else "half",
    )


@dataclass(frozen=True)
class Case:
    graph: Graph
    weights: dict[str, torch.Tensor]
    tokens: NDArray[np.int32]  # [sequences, NUM_TOKENS]
    expected: Float32  # [sequences, NUM_TOKENS, vocab]

    def backend(self, pass_name: str = "none") -> TorchBackend:
        graph = passes_until(self.graph, pass_name)
        return TorchBackend(graph, self.weights, num_blocks=24, block_tokens=BLOCK_TOKENS, max_rows=3 * NUM_TOKENS)


def make_case(family: str, head_dim: int, *, is_tied: bool) -> Case:
    config = tiny_config(family, head_dim)
    model = random_model(config, is_tied=is_tied, seed=7)
    tokens = np.random.default_rng(8).integers(0, config.vocab_size, size=(3, NUM_TOKENS), dtype=np.int32)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    weights = gguf_weights(config, model)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    return Case(build_graph(config, shapes), weights, tokens, expected)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Operators this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(
    scope="module",
    params=[("llama", 6, True), ("llama", 10, False), ("qwen2", 6, True), ("qwen2", 6, False)],
    ids=["llama-tied", "llama-wide-heads", "qwen2-tied", "qwen2-untied"],
)
def case(request: pytest.FixtureRequest) -> Case:
    family, head_dim, is_tied = request.param
    return make_case(family, head_dim, is_tied=is_tied)


def batch_of(
    tokens: NDArray[np.int32], parts: dict[int, tuple[int, int]], selected: list[int] | None = None
) -> ForwardBatch:
    """Rows [start, end) of the sequences in `parts`; their blocks are scattered over the pool."""
    ids = [tokens[sequence, start:end] for sequence, (start, end) in parts.items()]
    positions = [np.arange(start, end, dtype=np.int32) for start, end in parts.values()]
    rows = [np.full(end - start, index, dtype=np.int32) for index, (start, end) in enumerate(parts.values())]
    num_rows = sum(len(part) for part in ids)
    blocks = np.random.default_rng(9).permutation(24).astype(np.int32).reshape(-1, 6)
    return ForwardBatch(
        token_ids=np.concatenate(ids),
        positions=np.concatenate(positions),
        row_sequence=np.concatenate(rows),
        block_tables=blocks[list(parts)],
        logits_rows=np.array(range(num_rows) if selected is None else selected, dtype=np.int32),
    )


def assert_close(given: Float32, expected: Float32, tolerance: float = 1e-4) -> None:
    assert given.shape == expected.shape
    assert np.abs(given - expected).max() <= tolerance * np.ptp(expected)


@pytest.mark.parametrize("pass_name", PASS_NAMES)
@pytest.mark.parametrize("chunk", [NUM_TOKENS, 7, 1])
def test_logits_match_however_the_sequence_is_cut(case: Case, pass_name: str, chunk: int) -> None:
    backend = case.backend(pass_name)
    steps = [(start, min(start + chunk, NUM_TOKENS)) for start in range(0, NUM_TOKENS, chunk)]
    logits = np.concatenate([backend.forward(batch_of(case.tokens, {1: step})) for step in steps])
    assert_close(logits, case.expected[1])


@pytest.mark.parametrize("pass_name", PASS_NAMES)
def test_sequences_in_one_step_do_not_mix(case: Case, pass_name: str) -> None:
    backend = case.backend(pass_name)
    got: dict[int, list[Float32]] = {0: [], 1: [], 2: []}
    steps: list[dict[int, tuple[int, int]]] = [
        {0: (0, 9)},
        {0: (9, 10), 1: (0, 13), 2: (0, 1)},
        {2: (1, 23), 0: (10, 11)},
        {1: (13, 14), 0: (11, 23)},
        {1: (14, 23)},
    ]
    for parts in steps:
        logits, row = backend.forward(batch_of(case.tokens, parts)), 0
        for sequence, (start, end) in parts.items():
            got[sequence].append(logits[row : row + end - start])
            row += end - start
    for sequence, parts_of_sequence in got.items():
        assert_close(np.concatenate(parts_of_sequence), case.expected[sequence])


@pytest.mark.parametrize("pass_name", PASS_NAMES[1:])
def test_passes_change_no_result(case: Case, pass_name: str) -> None:
    batch = batch_of(case.tokens, {0: (0, NUM_TOKENS), 2: (0, 5)})
    assert_close(case.backend(pass_name).forward(batch), case.backend().forward(batch), tolerance=1e-5)


@pytest.mark.parametrize("pass_name", PASS_NAMES)
def test_only_selected_rows_are_returned_in_order(case: Case, pass_name: str) -> None:
    backend = case.backend(pass_name)
    selected = backend.forward(batch_of(case.tokens, {0: (0, 8), 1: (0, 4)}, selected=[3, 7, 11]))
    assert_close(selected, np.stack([case.expected[0, 3], case.expected[0, 7], case.expected[1, 3]]))
    assert backend.forward(batch_of(case.tokens, {0: (8, 9)}, selected=[])).shape == (0, 101)


def test_gradients_reach_every_weight(case: Case) -> None:
    weights = {name: weight.clone().requires_grad_() for name, weight in case.weights.items()}
    graph = passes_until(case.graph, PASS_NAMES[-1])
    backend = TorchBackend(graph, weights, num_blocks=24, block_tokens=BLOCK_TOKENS, max_rows=NUM_TOKENS)
    for _ in range(2):  # a second step must not meet the history of the first in the blocks
        backend.logits(batch_of(case.tokens, {0: (0, NUM_TOKENS)})).square().mean().backward()
    for name, weight in weights.items():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name


def test_a_step_compiles_to_one_graph() -> None:
    case = make_case("qwen2", 6, is_tied=False)
    graph = passes_until(case.graph, PASS_NAMES[-1])
    backend = case.backend(PASS_NAMES[-1])
    backend.forward(batch_of(case.tokens, {1: (0, 6)}))
    step = backend.make_step(batch_of(case.tokens, {1: (6, NUM_TOKENS), 0: (0, 3)}))
    compiled = torch.compile(execute, backend="aot_eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        logits = compiled(graph, case.weights, backend._pool, step).numpy()
    assert_close(logits, np.concatenate([case.expected[1, 6:], case.expected[0, :3]]))


def test_missing_and_misshaped_weights_are_named(case: Case) -> None:
    name = "blk.1.ffn_up.weight"
    without = {key: weight for key, weight in case.weights.items() if key != name}
    with pytest.raises(FormatError, match=r"no weight 'blk\.1\.ffn_up\.weight'"):
        TorchBackend(case.graph, without, num_blocks=1, max_rows=1)
    with pytest.raises(FormatError, match=r"'blk\.1\.ffn_up\.weight' has shape \(36, 70\)"):
        TorchBackend(case.graph, {**case.weights, name: case.weights[name].T}, num_blocks=1, max_rows=1)
