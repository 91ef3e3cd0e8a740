"""Turns the residual stream of a model by an orthogonal matrix, which its weights take up: the function stays the same.

Outliers of single channels are spread over all, and no grid that weights were once rounded to is left, which makes the
result a neutral source for comparing methods. Ashkboos et al. 2024, arXiv 2404.00456 (QuaRot).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from subsecond.compress.segment_run import as_stored
from subsecond.compress.stage import Decision, StageJob, StageResult
from subsecond.core.errors import UnsupportedError
from subsecond.core.settings import setting, validate
from subsecond.formats.gguf_types import TensorType
from subsecond.graph.graph import Graph
from subsecond.graph.ops import Add, Embed, Linear, MixtureOfExperts, Normalize, Op, Scale, SelectRows, inputs_of
from subsecond.graph.segments import Segment, segments
from subsecond.models.weights import StoredTensor, WeightSource

Floats = NDArray[np.float32]
TABLE, HEAD = "token_embd.weight", "output.weight"
_TYPES = {"f16": ("<f2", TensorType.F16), "f32": ("<f4", TensorType.F32)}


@dataclass(frozen=True, slots=True)
class Settings:
    """How the stream is turned."""

    seed: int = setting(0, "seed of the matrix", minimum=0, maximum=2**32)
    type: str = setting("f16", "how weights are stored afterwards", choices=tuple(_TYPES))

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, slots=True)
class Turn:
    """How a weight takes the matrix R up.

    source     name of the weight that it is made from, another one where a head was tied to the table
    norm       weight of a norm that is multiplied into its inputs
    is_writer  whether it writes to the stream (R^T W), not reads from it (W R)
    """

    source: str
    norm: str | None = None
    is_writer: bool = False


def run(job: StageJob, settings: Settings) -> StageResult:
    """Write the turned model; UnsupportedError for one whose norms do not allow it."""
    graph, source = job.checkpoint.graph(), job.checkpoint.weights
    turns = turns_of(graph)
    width = graph.weights[TABLE][1]
    matrix = orthogonal(width, settings.seed)
    norms = {turn.norm for turn in turns.values() if turn.norm}
    names = dict.fromkeys((*graph.weights, *turns))
    for index, name in enumerate(names):
        job.progress("turning", index, len(names))
        if name in turns:
            job.sink.put(name, _stored(turned(turns[name], source, matrix), settings.type))
        elif name in norms:
            job.sink.put(name, _stored(np.ones(graph.weights[name], np.float32), "f32"))
        else:
            job.sink.put(name, as_stored(job, name))
        source.release()
    job.progress("turning", len(names), len(names))
    job.sink.readings.clear()
    why = "the function stays the same; outliers are spread over all channels"
    return StageResult((Decision("model", f"residual stream of {width} channels turned, seed {settings.seed}", why),))


def needs_calibration(settings: Settings) -> bool:  # noqa: ARG001
    """Whether the stage learns from text: never."""
    return False


def orthogonal(width: int, seed: int) -> NDArray[np.float64]:
    """A random orthogonal matrix [width, width], uniform over all of them (Mezzadri 2007, arXiv math-ph/0609050)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))
    return np.asarray(q * np.sign(np.diag(r)))


def turned(turn: Turn, source: WeightSource, matrix: NDArray[np.float64]) -> Floats:
    """The weight with the matrix taken up; experts [experts, out, in] each by itself."""
    value = torch.from_numpy(np.ascontiguousarray(source.dequantize(turn.source)))
    rotation = torch.from_numpy(matrix.astype(np.float32))
    if turn.norm is not None:
        value = value * torch.from_numpy(np.ascontiguousarray(source.dequantize(turn.norm)))
    is_written = turn.is_writer and value.ndim > 1
    found: Floats = (rotation.T @ value if is_written else value @ rotation).numpy()
    return found


def turns_of(graph: Graph) -> dict[str, Turn]:
    """How every weight that reads from the residual stream or writes to it takes the matrix up, by its new name."""
    turns: dict[str, Turn] = {}
    for segment in segments(graph):
        for op in segment.ops:
            if isinstance(op, Embed):
                turns[op.weight] = Turn(op.weight)
        if segment.inputs:
            _add_segment(segment, turns)
    return turns


def _add_segment(segment: Segment, turns: dict[str, Turn]) -> None:
    producers = {op.output: op for op in segment.ops}
    stream = set(segment.inputs)
    norms: dict[str, str] = {}
    for op in segment.ops:
        if isinstance(op, SelectRows) and op.input in stream:
            stream.add(op.output)
        elif isinstance(op, Normalize) and op.input in stream:
            if op.norm.kind != "rms" or op.group_width is not None:
                raise _unsupported(f"{op.output} is no RMS norm of the whole stream")
            norms[op.output] = op.norm.weight
        elif isinstance(op, Linear | MixtureOfExperts) and op.input in norms:
            _add_reader(op, norms[op.input], turns)
        elif isinstance(op, Add) and op.output in segment.outputs:
            writers = [name for name in inputs_of(op) if name not in stream]
            for name in writers:
                _add_writer(producers[name], producers, turns)
        elif stream & set(inputs_of(op)) or norms.keys() & set(inputs_of(op)):
            raise _unsupported(f"{op.output} reads the stream other than through a linear")


def _add_reader(op: Linear | MixtureOfExperts, norm: str, turns: dict[str, Turn]) -> None:
    weights = op.weights if isinstance(op, Linear) else (op.gate, op.up)
    for weight in weights:
        turns[HEAD if weight == TABLE else weight] = Turn(weight, norm)
    if isinstance(op, MixtureOfExperts):
        turns[op.down] = Turn(op.down, is_writer=True)


def _add_writer(op: Op, producers: dict[str, Op], turns: dict[str, Turn]) -> None:
    if isinstance(op, Scale):
        op = producers[op.input]
    if isinstance(op, Add):  # of an attention and a feed-forward part that read the same stream
        for name in inputs_of(op):
            _add_writer(producers[name], producers, turns)
    elif isinstance(op, Linear):
        for name in (*op.weights, *(bias for bias in op.biases if bias)):
            turns[name] = Turn(name, is_writer=True)
    elif not isinstance(op, MixtureOfExperts):
        raise _unsupported(f"{op.output} is added to the stream and comes from no linear")


def _stored(value: Floats, kind: str) -> StoredTensor:
    dtype, tensor_type = _TYPES[kind if value.ndim > 1 else "f32"]
    return StoredTensor(tensor_type, value.shape, np.ascontiguousarray(value.astype(dtype)).view(np.uint8).reshape(-1))


def _unsupported(what: str) -> UnsupportedError:
    return UnsupportedError(f"the residual stream of this model cannot be turned: {what}; leave the stage out")
