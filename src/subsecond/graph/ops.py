"""The closed set of operators that a graph is made of; how they are computed is the business of the backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rows = Literal["all", "selected"]


@dataclass(frozen=True, slots=True)
class Value:
    """What flows along an edge: float32 of shape [rows, width].

    `rows` is "all" for every row of the step and "selected" for the rows whose logits were asked for.
    """

    name: str
    width: int
    rows: Rows = "all"


@dataclass(frozen=True, slots=True)
class Norm:
    """Root-mean-square normalization folded into a reader: x / sqrt(mean(x^2) + eps) * weight."""

    weight: str
    eps: float


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864) of the first `dims` channels of each head.

    `pairing` says which channels form a pair: "interleaved" (2i, 2i+1) or "half" (i, i + dims/2).
    `frequency_factors` names a weight [dims/2] that divides the frequencies, where the model has one.
    """

    theta: float
    dims: int
    pairing: Literal["interleaved", "half"]
    frequency_factors: str | None = None


@dataclass(frozen=True, slots=True)
class Embed:
    """output[row] = weight[token id of row]."""

    output: str
    weight: str


@dataclass(frozen=True, slots=True)
class Linear:
    """output = input @ concat(weights).T + concat(biases), weights of shape [out, in] each.

    The optional parts are set by passes: `norm` is applied to the input first; `gated` means that the two weights are
    gate and up, and output = activation(gate) * up; `residual` is added to the result.
    """

    output: str
    input: str
    weights: tuple[str, ...]
    biases: tuple[str | None, ...]
    norm: Norm | None = None
    gated: str | None = None
    residual: str | None = None


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """output = norm(input); Zhang and Sennrich 2019, arXiv 1910.07467."""

    output: str
    input: str
    norm: Norm


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotate every head of the input by the positions of its rows; input width = heads * head_dim."""

    output: str
    input: str
    head_dim: int
    rotary: Rotary


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal softmax(q k^T * scale) v over the sequence's keys and values, those of this step included.

    Query heads are grouped: head h reads key/value head h // (num_heads / num_kv_heads). The step's keys and values are
    written to layer `layer` of the sequence's blocks first. With `rotary` set, queries and keys are rotated here.
    """

    output: str
    query: str
    key: str
    value: str
    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rotary: Rotary | None = None


@dataclass(frozen=True, slots=True)
class GatedActivation:
    """output = activation(gate) * up (Shazeer 2020, arXiv 2002.05202); activation "silu"."""

    output: str
    gate: str
    up: str
    activation: str


@dataclass(frozen=True, slots=True)
class Add:
    """output = left + right."""

    output: str
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class Split:
    """output = input[:, start:end]; an alias, never a copy."""

    output: str
    input: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SelectRows:
    """output = the input rows whose logits were asked for, in that order."""

    output: str
    input: str


Op = Embed | Linear | RmsNorm | Rope | Attention | GatedActivation | Add | Split | SelectRows


def inputs_of(op: Op) -> tuple[str, ...]:
    """Names of the values that `op` reads."""
    match op:
        case Embed():
            return ()
        case Linear():
            return (op.input, op.residual) if op.residual else (op.input,)
        case Attention():
            return (op.query, op.key, op.value)
        case GatedActivation():
            return (op.gate, op.up)
        case Add():
            return (op.left, op.right)
        case _:
            return (op.input,)


def weights_of(op: Op) -> tuple[str, ...]:
    """Names of the weights that `op` reads, biases and norms included."""
    match op:
        case Embed():
            return (op.weight,)
        case Linear():
            norm = (op.norm.weight,) if op.norm else ()
            return (*op.weights, *(b for b in op.biases if b), *norm)
        case RmsNorm():
            return (op.norm.weight,)
        case Rope() | Attention():
            factors = op.rotary.frequency_factors if op.rotary else None
            return (factors,) if factors else ()
        case _:
            return ()
