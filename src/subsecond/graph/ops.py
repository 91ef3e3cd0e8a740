"""The closed set of operators that a graph is made of; how they are computed is the business of the backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rows = Literal["all", "selected"]
Activation = Literal["silu", "gelu", "gelu_tanh"]
"""silu: x sigmoid(x); gelu: x Phi(x) with the normal distribution's Phi; gelu_tanh: its approximation by tanh
(Hendrycks and Gimpel 2016, arXiv 1606.08415)."""


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
    """How a row is normalized.

    "rms": x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, arXiv 1910.07467). "layer": (x - mean(x)) /
    sqrt(variance(x) + eps) * weight + bias (Ba et al. 2016, arXiv 1607.06450).
    """

    weight: str
    eps: float
    kind: Literal["rms", "layer"] = "rms"
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864) of the first `dims` channels of each head.

    Pair i turns by position * frequencies[i] radians and is multiplied by `magnitude`. `pairing` says which channels
    form it: "interleaved" (2i, 2i+1) or "half" (i, i + dims/2). `frequency_factors` names a weight [dims/2] that
    divides the frequencies, where the model has one.
    """

    frequencies: tuple[float, ...]
    pairing: Literal["interleaved", "half"]
    frequency_factors: str | None = None
    magnitude: float = 1.0

    @property
    def dims(self) -> int:
        """Channels that are rotated."""
        return 2 * len(self.frequencies)


@dataclass(frozen=True, slots=True)
class Embed:
    """output[row] = weight[index of row], the index being the row's token id, its position, or always the first."""

    output: str
    weight: str
    index: Literal["token", "position", "first"] = "token"


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
    gated: Activation | None = None
    residual: str | None = None


@dataclass(frozen=True, slots=True)
class Normalize:
    """output = norm(input); with `group_width`, every group of that many channels is normalized on its own."""

    output: str
    input: str
    norm: Norm
    group_width: int | None = None


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotate every head of the input by the positions of its rows; input width = heads * head_dim."""

    output: str
    input: str
    head_dim: int
    rotary: Rotary


@dataclass(frozen=True, slots=True)
class Attention:
    """softmax(cap(q k^T * scale)) v over the sequence's keys and values, those of this step included.

    Query heads are grouped: head h reads key/value head h // (num_heads / num_kv_heads). The step's keys and values are
    written to layer `layer` of the sequence's blocks first. A row at position p sees the positions up to p, with
    `window` only the last `window` of them, p included; without `is_causal` it sees the whole sequence, which then has
    to come in one step. cap(x) = softcap * tanh(x / softcap). With `rotary` set, queries and keys are rotated here.
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
    window: int | None = None
    softcap: float | None = None
    is_causal: bool = True


@dataclass(frozen=True, slots=True)
class GatedActivation:
    """output = activation(gate) * up (Shazeer 2020, arXiv 2002.05202)."""

    output: str
    gate: str
    up: str
    activation: Activation


@dataclass(frozen=True, slots=True)
class Activate:
    """output = activation(input)."""

    output: str
    input: str
    activation: Activation


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """output = sum over the chosen experts e of p_e * down_e(activation(gate_e(input)) * up_e(input)).

    `router` is a value [rows, experts] of logits; p is their softmax, cut to the `num_chosen` largest (the lower index
    on a tie), and with `is_normalized` divided by their sum. Experts are summed in order of their index. The weights
    are gate and up [experts, ff_width, width] and down [experts, width, ff_width]. Jiang et al. 2024, arXiv 2401.04088.
    """

    output: str
    input: str
    router: str
    gate: str
    up: str
    down: str
    num_chosen: int
    is_normalized: bool
    activation: Activation


@dataclass(frozen=True, slots=True)
class Add:
    """output = left + right."""

    output: str
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class Scale:
    """output = input * factor."""

    output: str
    input: str
    factor: float


@dataclass(frozen=True, slots=True)
class Softcap:
    """output = cap * tanh(input / cap)."""

    output: str
    input: str
    cap: float


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


Op = (
    Embed
    | Linear
    | Normalize
    | Rope
    | Attention
    | GatedActivation
    | Activate
    | MixtureOfExperts
    | Add
    | Scale
    | Softcap
    | Split
    | SelectRows
)


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
        case MixtureOfExperts():
            return (op.input, op.router)
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
            return (*op.weights, *(b for b in op.biases if b), *(_norm_weights(op.norm) if op.norm else ()))
        case Normalize():
            return _norm_weights(op.norm)
        case MixtureOfExperts():
            return (op.gate, op.up, op.down)
        case Rope() | Attention():
            factors = op.rotary.frequency_factors if op.rotary else None
            return (factors,) if factors else ()
        case _:
            return ()


def _norm_weights(norm: Norm) -> tuple[str, ...]:
    return (norm.weight, norm.bias) if norm.bias else (norm.weight,)
