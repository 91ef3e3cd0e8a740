"""Executes a graph operator by operator with torch, over paged key/value blocks; plans and schedules nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from subsecond.backends.batch import Float32, ForwardBatch, Int32, SampleBatch, SampleResult
from subsecond.backends.torch import ops
from subsecond.backends.torch.step import Step, make_step, rotaries_of
from subsecond.core.errors import FormatError
from subsecond.graph.graph import Graph
from subsecond.graph.ops import (
    Activate,
    Add,
    Attention,
    Embed,
    GatedActivation,
    Linear,
    MixtureOfExperts,
    Norm,
    Normalize,
    Op,
    Rope,
    Scale,
    SelectRows,
    Softcap,
    Split,
    inputs_of,
    weights_of,
)
from subsecond.graph.taps import tapped

if TYPE_CHECKING:
    from subsecond.models.weights import WeightSource

# Keys and values [slots, kv_heads, head_dim] of each layer.
Pool = Mapping[int, tuple[Tensor, Tensor]]
Passing = Callable[[str, Tensor], Tensor]


class TorchBackend:
    """A graph on a torch device, with its own pool of key/value blocks; implements `backends.protocol.Backend`.

    `weights` gives every weight that the graph reads: tensors by name (they keep their gradient history), or a source
    that dequantizes. `dtype` is that of weights, activations and blocks. With float32 on "cpu" this is the reference
    that quality is measured against. A weight that is missing or of a wrong shape is a FormatError.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor] | WeightSource,
        *,
        num_blocks: int,
        block_tokens: int = 32,
        max_rows: int,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._graph = graph
        self._device = torch.device(device)
        self._dtype = dtype
        self._num_blocks = num_blocks
        self._block_tokens = block_tokens
        self._max_rows = max_rows
        self._rotaries = rotaries_of(graph)
        self._weights = _load(graph, weights, self._device, dtype)
        self._pool = _make_pool(graph, num_blocks * block_tokens, self._device, dtype)
        self._logits: Float32 | None = None

    @property
    def vocab_size(self) -> int:
        """Width of a row of logits."""
        return self._graph.values[self._graph.output].width

    @property
    def block_tokens(self) -> int:
        """Positions that one key/value block holds."""
        return self._block_tokens

    @property
    def num_blocks(self) -> int:
        """Key/value blocks in the pool."""
        return self._num_blocks

    @property
    def max_rows(self) -> int:
        """Most rows that one step may have."""
        return self._max_rows

    @property
    def variant(self) -> str:
        """Device and number type."""
        return f"torch-{self._device.type}-{str(self._dtype).removeprefix('torch.')}"

    def forward(self, batch: ForwardBatch) -> Float32:
        """Run one step; float32 logits [selected rows, vocab_size]."""
        with torch.no_grad():
            logits: Float32 = self.logits(batch).to("cpu", torch.float32).numpy()
        self._logits = logits
        return logits

    def logits(self, batch: ForwardBatch) -> Tensor:
        """As `forward`, but a tensor through which gradients reach the weights; those of earlier steps it ends at."""
        assert batch.num_rows <= self._max_rows, f"{batch.num_rows} rows in a step for {self._max_rows}"
        return execute(self._graph, self._weights, self._pool, self.make_step(batch))

    def values(self, batch: ForwardBatch, names: Sequence[str]) -> dict[str, Float32]:
        """Run one step; float32 [rows, width] of each of `names`, values of all rows of the unfused graph."""
        found: dict[str, Float32] = {}

        def keep(name: str, value: Tensor) -> Tensor:
            if name in names:
                found[name] = value.to("cpu", torch.float32).numpy()
            return value

        with torch.no_grad():
            execute(tapped(self._graph, names), self._weights, self._pool, self.make_step(batch), keep)
        return found

    def gradient_times_input(self, batch: ForwardBatch, targets: Int32) -> Float32:
        """How much each token of `batch` speaks for `targets`: float32 [rows].

        The gradient of the sum of the log-probabilities of `targets`, one a selected row, with respect to the embedded
        token, times that, summed over channels; tokens that occur twice have each their own. Simonyan et al. 2013,
        arXiv 1312.6034; Li et al. 2016, arXiv 1506.01066. All tokens have to come in one step.
        """
        table = next(op for op in self._graph.ops if isinstance(op, Embed) and op.index == "token")
        embedded: list[Tensor] = []

        def part(name: str, value: Tensor) -> Tensor:
            if name != table.output:
                return value
            embedded.append(value.detach().requires_grad_())
            return embedded[0]

        with torch.enable_grad():
            logits = execute(self._graph, self._weights, self._pool, self.make_step(batch), part)
            chosen = torch.from_numpy(targets.astype(np.int64)).to(logits.device)
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            score = wide.log_softmax(dim=-1).gather(1, chosen[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, embedded[0])
        product: Float32 = (gradient * embedded[0].detach()).sum(dim=-1).to("cpu", torch.float32).numpy()
        return product

    def make_step(self, batch: ForwardBatch) -> Step:
        """The tensors of a step, for callers of `execute`."""
        table_dtype = torch.promote_types(self._dtype, torch.float32)
        return make_step(batch, self._block_tokens, self._rotaries, self._weights, self._device, table_dtype)

    def sample(self, batch: SampleBatch) -> SampleResult:
        """Draw from the logits of the last step, one token a selected row."""
        # The sampler is native code; executing graphs must not need it.
        from subsecond.backends.sampling import sample

        assert self._logits is not None, "sample() needs the logits of a step"
        return sample(self._logits, batch)

    def close(self) -> None:
        """Free weights and blocks."""
        self._weights, self._pool, self._logits = {}, {}, None


def execute(
    graph: Graph, weights: Mapping[str, Tensor], pool: Pool, step: Step, passing: Passing | None = None
) -> Tensor:
    """Logits [selected rows, vocab_size] of one step; writes the step's keys and values to `pool`, and nothing else.

    `passing` is called with the name of each value and the value, and returns what goes on in its place.
    """
    values: dict[str, Tensor] = {}
    run_ops(graph.ops, values, weights, step, pool, kept={graph.output}, passing=passing)
    return values[graph.output]


def run_ops(
    ops: Sequence[Op],
    values: dict[str, Tensor],
    weights: Mapping[str, Tensor],
    step: Step,
    pool: Pool | None = None,
    *,
    kept: Collection[str] = (),
    passing: Passing | None = None,
) -> None:
    """Compute a part of a graph; `values` holds what it reads from before, and what it computes is added.

    Values that no later one of `ops` reads are dropped unless they are `kept`. Without a `pool` every sequence has to
    begin in this step. `passing` as in `execute`.
    """
    last_reader = {name: index for index, op in enumerate(ops) for name in inputs_of(op)}
    for index, op in enumerate(ops):
        value = _run(op, values, weights, pool, step)
        values[op.output] = value if passing is None else passing(op.output, value)
        for name in inputs_of(op):
            if last_reader[name] == index and name not in kept:
                values.pop(name, None)


def _run(op: Op, values: Mapping[str, Tensor], weights: Mapping[str, Tensor], pool: Pool | None, step: Step) -> Tensor:
    match op:
        case Embed():
            return ops.embed(weights[op.weight], _indices(op, step))
        case Linear():
            return _linear(op, values, weights)
        case Normalize():
            x = values[op.input]
            groups = x.unflatten(-1, (-1, op.group_width)) if op.group_width else x
            return _norm(groups, op.norm, weights).reshape(x.shape)
        case Rope():
            heads = values[op.input].unflatten(-1, (-1, op.head_dim))
            return ops.rope(heads, *step.rotary_tables[op.rotary], op.rotary.pairing).flatten(1)
        case Attention():
            return _attention(op, values, pool, step)
        case GatedActivation():
            return ops.gated_activation(values[op.gate], values[op.up], op.activation)
        case Activate():
            return ops.activate(values[op.input], op.activation)
        case MixtureOfExperts():
            gate, up, down = (weights[name] for name in (op.gate, op.up, op.down))
            x, router = values[op.input], values[op.router]
            return ops.mixture_of_experts(x, router, gate, up, down, op.num_chosen, op.is_normalized, op.activation)
        case Add():
            return ops.add(values[op.left], values[op.right])
        case Scale():
            return values[op.input] * op.factor
        case Softcap():
            return ops.cap(values[op.input], op.cap)
        case Split():
            return ops.split(values[op.input], op.start, op.end)
        case SelectRows():
            return ops.select_rows(values[op.input], step.selected_rows)


def _indices(op: Embed, step: Step) -> Tensor:
    if op.index == "token":
        return step.token_ids
    return step.positions if op.index == "position" else torch.zeros_like(step.positions)


def _norm(x: Tensor, norm: Norm, weights: Mapping[str, Tensor]) -> Tensor:
    if norm.bias is not None:
        return ops.layer_norm(x, weights[norm.weight], weights[norm.bias], norm.eps)
    return ops.rms_norm(x, weights[norm.weight], norm.eps)


def _linear(op: Linear, values: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    x = values[op.input]
    if op.norm is not None:
        x = _norm(x, op.norm, weights)
    matrices = [weights[name] for name in op.weights]
    biases = [weights[name] if name is not None else None for name in op.biases]
    y = ops.linear(x, matrices, biases)
    if op.gated is not None:
        gate, up = y.tensor_split([len(matrices[0])], dim=-1)
        y = ops.gated_activation(gate, up, op.gated)
    return y if op.residual is None else ops.add(values[op.residual], y)


def _attention(op: Attention, values: Mapping[str, Tensor], pool: Pool | None, step: Step) -> Tensor:
    query, key, value = (values[name].unflatten(-1, (-1, op.head_dim)) for name in (op.query, op.key, op.value))
    if op.rotary is not None:
        cosines, sines = step.rotary_tables[op.rotary]
        query = ops.rope(query, cosines, sines, op.rotary.pairing)
        key = ops.rope(key, cosines, sines, op.rotary.pairing)
    keys, vals = (key[:0], value[:0]) if pool is None else pool[op.layer]
    if pool is not None:
        keys.index_copy_(0, step.slots, key.detach())
        vals.index_copy_(0, step.slots, value.detach())
    mixed = []
    for span in step.spans:
        rows = slice(span.start, span.end)
        # The step's own rows are taken from the activations, so that gradients pass; the pool holds the same numbers.
        span_keys = torch.cat((keys[span.past_slots], key[rows]))
        span_values = torch.cat((vals[span.past_slots], value[rows]))
        mixed.append(
            ops.attention(
                query[rows],
                span_keys,
                span_values,
                step.positions[rows],
                op.scale,
                window=op.window,
                softcap=op.softcap,
                is_causal=op.is_causal,
            )
        )
    return torch.cat(mixed).flatten(1)


def _load(
    graph: Graph, weights: Mapping[str, Tensor] | WeightSource, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for op in graph.ops for name in weights_of(op)):
        if isinstance(weights, Mapping):
            if name not in weights:
                raise FormatError(f"no weight {name!r} was given, which the graph reads")
            tensor = weights[name]
        else:
            tensor = torch.from_numpy(np.ascontiguousarray(weights.dequantize(name)))
        if tuple(tensor.shape) != graph.weights[name]:
            raise FormatError(f"weight {name!r} has shape {tuple(tensor.shape)}; the graph reads {graph.weights[name]}")
        loaded[name] = tensor.to(device=device, dtype=dtype)
    return loaded


def _make_pool(graph: Graph, num_slots: int, device: torch.device, dtype: torch.dtype) -> Pool:
    pool = {}
    for op in graph.ops:
        if isinstance(op, Attention):
            keys = torch.zeros((num_slots, op.num_kv_heads, op.head_dim), device=device, dtype=dtype)
            pool[op.layer] = keys, torch.zeros_like(keys)
    return pool
