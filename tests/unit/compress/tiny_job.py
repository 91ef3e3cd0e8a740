"""Runs stages on tiny models in memory: a checkpoint, a sink that keeps what it is given, and logits of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from subsecond.backends.batch import Float32, Int32
from subsecond.backends.torch import TorchBackend
from subsecond.compress.stage import Calibration, StageJob
from subsecond.measure.evaluation import window_batch
from subsecond.models.config import ModelConfig
from subsecond.models.families.registry import build_graph
from subsecond.models.tokenizer import Tokenizer
from subsecond.models.weights import HeldWeights, StoredTensor, WeightSource
from tests.unit.compress.test_walk import tiny_weights


class KeepingSink:
    """Implements `compress.stage.Sink`."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.readings: dict[str, str] = {"default": "int8"}
        self.tensors: dict[str, StoredTensor] = {}
        self.tokenizer: Tokenizer | None = None

    def put(self, name: str, tensor: StoredTensor) -> None:
        assert name not in self.tensors, f"{name} was put twice"
        self.tensors[name] = StoredTensor(tensor.type, tensor.shape, np.array(tensor.raw))

    def put_tokenizer(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer


def job_of(
    config: ModelConfig, shapes: dict[str, tuple[int, ...]], folder: Path, weights: HeldWeights | None = None
) -> tuple[StageJob, KeepingSink]:
    """A job on a model with drawn weights and six windows of drawn tokens."""
    source, graph = weights or tiny_weights(shapes), build_graph(config, shapes)
    checkpoint = cast(Any, SimpleNamespace(graph=lambda: graph, weights=source, config=config))
    windows = np.random.default_rng(3).integers(0, config.vocab_size, (6, 16), dtype=np.int32)
    sink = KeepingSink(config)
    return StageJob(checkpoint, sink, Calibration(windows, windows[:2], "drawn"), folder, lambda *_: None), sink


def result_logits(sink: KeepingSink, window: Int32) -> Float32:
    """Logits of what a stage wrote, whose graph is built from its configuration and shapes."""
    return logits_of(sink.config, HeldWeights(sink.tensors), window)


def logits_of(config: ModelConfig, weights: WeightSource, window: Int32) -> Float32:
    graph = build_graph(config, weights.shapes)
    backend = TorchBackend(graph, weights, num_blocks=1, block_tokens=len(window), max_rows=len(window))
    return backend.forward(window_batch(window, 0, len(window), 1)).copy()


def changed(weights: WeightSource, arrays: Mapping[str, Float32]) -> HeldWeights:
    """The weights with some of them replaced."""
    from tests.unit.compress.test_walk import held

    return held({name: arrays.get(name, weights.dequantize(name)) for name in weights.shapes})
