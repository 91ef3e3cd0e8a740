"""A decoder of random weights whose widths hold blocks of 32, and jobs of stages on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from subsecond.compress.stage import Calibration, StageJob
from subsecond.compress.walk import Walk
from subsecond.formats.gguf_types import TensorType
from subsecond.graph.graph import Graph
from subsecond.models.families.registry import build_graph
from subsecond.models.weights import HeldWeights, StoredTensor
from tests.unit.compress.tiny_job import KeepingSink
from tests.unit.tiny_decoder import TINY, tiny_shapes

SMALL = replace(TINY, width=64, ff_width=96, num_heads=4, num_kv_heads=2, head_dim=16, rope_dims=16, vocab_size=80)


def small_weights(graph: Graph, seed: int = 0) -> HeldWeights:
    """Random weights with a few large channels, so that layers and inputs differ."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for index, (name, shape) in enumerate(graph.weights.items()):
        if name.endswith("norm.weight"):
            value = generator.uniform(0.5, 2.0, shape)
            value[::17] *= 4
        else:
            value = generator.standard_t(5, shape) * (0.5 + 0.1 * (index % 5)) / np.sqrt(shape[-1])
        array = value.astype(np.float32)
        tensors[name] = StoredTensor(TensorType.F32, shape, array.view(np.uint8).reshape(-1))
    return HeldWeights(tensors)


def small_graph(family: str = "llama", *, is_tied: bool = True, **changes: int) -> Graph:
    config = replace(SMALL, family=family, rope_pairing="interleaved" if family == "llama" else "half", **changes)  # type: ignore[arg-type]
    return build_graph(config, tiny_shapes(config, is_tied=is_tied))


def small_windows(num_windows: int = 6, num_tokens: int = 32, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SMALL.vocab_size, (num_windows, num_tokens), dtype=np.int32)


def small_walk(graph: Graph | None = None) -> Walk:
    graph = graph or small_graph()
    return Walk(graph, small_weights(graph), small_windows())


def small_job(folder: Path, graph: Graph | None = None) -> StageJob:
    graph = graph or small_graph()
    checkpoint = cast(Any, SimpleNamespace(graph=lambda: graph, weights=small_weights(graph)))
    calibration = Calibration(small_windows(), small_windows(3, seed=2), "drawn")
    return StageJob(checkpoint, KeepingSink(SMALL), calibration, folder, lambda *_: None)


def put_by(job: StageJob) -> dict[str, StoredTensor]:
    return cast(KeepingSink, job.sink).tensors


def logits_of(graph: Graph, weights: HeldWeights, windows: np.ndarray) -> np.ndarray:
    """float32 [rows, vocabulary]."""
    from subsecond.backends.torch import TorchBackend
    from subsecond.measure.evaluation import window_batch

    found = []
    for window in windows:
        size = len(window)
        backend = TorchBackend(graph, weights, num_blocks=1, block_tokens=size, max_rows=size)
        found.append(backend.forward(window_batch(window, 0, size, 1)).copy())
    return np.concatenate(found)


def mean_kl(original: np.ndarray, other: np.ndarray) -> float:
    wide = [each.astype(np.float64) for each in (original, other)]
    logs = [each - np.log(np.exp(each).sum(axis=-1, keepdims=True)) for each in wide]
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=-1).mean())
