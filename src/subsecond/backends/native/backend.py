"""Runs a plan with the native kernels: translates its operators into kernel calls once, then one call a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subsecond import _native
from subsecond.backends.batch import Float32, ForwardBatch, SampleBatch, SampleResult
from subsecond.backends.native.weight_formats import name_formats
from subsecond.backends.native.weights import PackedWeights
from subsecond.backends.sampling import sample
from subsecond.core.errors import FormatError, InputError, UnsupportedError
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
    Rotary,
    Scale,
    SelectRows,
    Softcap,
    Split,
)
from subsecond.graph.plan import Segment

BLOCK_TOKENS: int = _native.BLOCK_TOKENS

Operand = tuple[int, int, int, int]  # arena, offset, column, stride; see native/executor.h


@dataclass(frozen=True, slots=True)
class NativeConfig:
    """How a native backend runs: instruction set ("" for the best here), threads, rows a step, key/value blocks.

    `kv` is the type of keys and values, "" for the default of the instruction set.
    """

    isa: str
    num_threads: int
    max_rows: int
    num_blocks: int
    kv: str = ""


class NativeBackend:
    """One model in the native kernels, with its key/value blocks. Implements `backends.protocol.Backend`."""

    def __init__(self, segment: Segment, weights: PackedWeights, config: NativeConfig) -> None:
        available = _native.available_isas()
        if config.isa and config.isa not in available:
            raise InputError(f"instruction set {config.isa!r} cannot run here; available: {', '.join(available)}")
        self.config = config
        self.isa = config.isa or available[0]
        self.kv = config.kv or _native.kv_types(self.isa)[0]
        self.weight_bytes = weights.num_bytes
        self._graph = segment.graph
        self._memory = segment.memory
        self._weights = weights
        output, self._vocab_size = self._output_place()
        attentions = [op for op in self._graph.ops if isinstance(op, Attention)]
        first = attentions[0] if attentions else None
        if any((op.num_kv_heads, op.head_dim) != (first.num_kv_heads, first.head_dim) for op in attentions if first):
            raise UnsupportedError(
                "the layers of this model differ in key/value heads; the native backend needs them equal"
            )
        self._executor = _native.Executor(
            isa=self.isa,
            kv_type=self.kv,
            num_threads=config.num_threads,
            max_rows=config.max_rows,
            output_width=self._vocab_size,
            all_floats=self._memory.width,
            selected_floats=self._memory.selected_width,
            num_layers=max((op.layer for op in attentions), default=-1) + 1,
            num_blocks=config.num_blocks,
            num_kv_heads=first.num_kv_heads if first else 1,
            head_dim=first.head_dim if first else 1,
        )
        self._matrix_ids: dict[str, list[int]] = {}
        self._vector_ids: dict[str, int] = {}
        self._rotary_ids: dict[Rotary, int] = {}
        for op in self._graph.ops:
            self._add(op)
        self._executor.finish(output)
        self._logits: Float32 = np.empty((0, self._vocab_size), np.float32)

    @property
    def segment(self) -> Segment:
        """The plan that runs."""
        return Segment("native", "cpu", self._graph, self._memory)

    @property
    def weights(self) -> PackedWeights:
        """The packed weights, which other plans of the same model may share."""
        return self._weights

    @property
    def vocab_size(self) -> int:
        """Width of a row of logits, or of the hidden rows that an embedding model gives."""
        return self._vocab_size

    @property
    def block_tokens(self) -> int:
        """Positions that one key/value block holds."""
        return BLOCK_TOKENS

    @property
    def num_blocks(self) -> int:
        """Key/value blocks in the pool."""
        return self.config.num_blocks

    @property
    def max_rows(self) -> int:
        """Most rows that one step may have."""
        return self.config.max_rows

    @property
    def variant(self) -> str:
        """Weight reading, arithmetic and key/value type."""
        reading = name_formats(self._graph, {name: m.format for name, m in self._weights.matrices.items()})
        return f"{reading}/{_native.arithmetic(self.isa)}/kv-{self.kv}"

    @property
    def kv_bytes(self) -> int:
        """Address space of the key/value pool; pages are touched on first use."""
        return int(self._executor.kv_bytes())

    def forward(self, batch: ForwardBatch) -> Float32:
        """Run one step; float32 logits [selected rows, vocab_size], a view that the next step overwrites."""
        self._logits = self._executor.forward(
            batch.token_ids, batch.positions, batch.row_sequence, batch.block_tables, batch.logits_rows
        )
        return self._logits

    def sample(self, batch: SampleBatch) -> SampleResult:
        """Draw from the logits of the last step."""
        return sample(self._logits, batch, isa=self.isa, num_threads=self.config.num_threads)

    def profile(self, is_on: bool) -> None:
        """Start (and reset) or stop timing every operator."""
        self._executor.set_profiling(is_on)

    def profiled_ns(self) -> dict[str, int]:
        """Nanoseconds that each operator took since profiling began, by the name of its output."""
        names = [op.output for op in self._graph.ops if not isinstance(op, Split)]
        return dict(zip(names, self._executor.call_ns(), strict=True))

    def close(self) -> None:
        """Free weights and blocks; may be called again."""
        self._logits = np.empty((0, self._vocab_size), np.float32)
        self.__dict__.pop("_executor", None)
        self.__dict__.pop("_weights", None)

    def _add(self, op: Op) -> None:
        executor, at = self._executor, self._operand
        match op:
            case Split():
                return
            case Embed():
                executor.add_embed(at(op.output), self._matrix(op.weight), op.index)
            case Linear():
                self._add_linear(op)
            case Attention():
                self._add_attention(op)
            case MixtureOfExperts():
                self._add_experts(op)
            case Normalize():
                self._add_normalize(op)
            case Rope():
                rotary = self._rotary(op.rotary)
                executor.add_rope(at(op.output), at(op.input), self._width(op.output), op.head_dim, rotary)
            case GatedActivation():
                width = self._width(op.output)
                executor.add_gated_activation(at(op.output), at(op.gate), at(op.up), width, op.activation)
            case Activate():
                executor.add_activate(at(op.output), at(op.input), self._width(op.output), op.activation)
            case Add():
                executor.add_add(at(op.output), at(op.left), at(op.right), self._width(op.output))
            case Scale():
                executor.add_scale(at(op.output), at(op.input), self._width(op.output), op.factor)
            case Softcap():
                executor.add_softcap(at(op.output), at(op.input), self._width(op.output), op.cap)
            case SelectRows():
                executor.add_select_rows(at(op.output), at(op.input), self._width(op.output))

    def _add_linear(self, op: Linear) -> None:
        norm = op.norm or Norm("", 0.0)
        assert norm.kind == "rms" and norm.bias is None, "only RMS norms are folded into linears"
        self._executor.add_linear(
            output=self._operand(op.output),
            input=self._operand(op.input),
            weights=[self._matrix(name) for name in op.weights],
            biases=[self._vector(name) if name else -1 for name in op.biases],
            norm=self._vector(norm.weight) if norm.weight else -1,
            norm_eps=norm.eps,
            gated=op.gated or "",
            residual=self._operand(op.residual) if op.residual else None,
        )

    def _add_attention(self, op: Attention) -> None:
        if op.window is not None and not op.is_causal:
            raise UnsupportedError("attention over the whole text with a window has no native kernel")
        self._executor.add_attention(
            output=self._operand(op.output),
            query=self._operand(op.query),
            key=self._operand(op.key),
            value=self._operand(op.value),
            layer=op.layer,
            num_heads=op.num_heads,
            num_kv_heads=op.num_kv_heads,
            head_dim=op.head_dim,
            scale=op.scale,
            rotary=self._rotary(op.rotary),
            window=op.window or 0,
            softcap=op.softcap or 0.0,
            is_causal=op.is_causal,
        )

    def _add_normalize(self, op: Normalize) -> None:
        self._executor.add_normalize(
            output=self._operand(op.output),
            input=self._operand(op.input),
            width=self._width(op.output),
            weight=self._vector(op.norm.weight),
            bias=self._vector(op.norm.bias) if op.norm.bias else -1,
            eps=op.norm.eps,
            is_layer=op.norm.kind == "layer",
            group_width=op.group_width or self._width(op.output),
        )

    def _add_experts(self, op: MixtureOfExperts) -> None:
        weights = zip(*(self._matrices(name) for name in (op.gate, op.up, op.down)), strict=True)
        self._executor.add_experts(
            output=self._operand(op.output),
            input=self._operand(op.input),
            router=self._operand(op.router),
            weights=[index for expert in weights for index in expert],
            num_chosen=op.num_chosen,
            is_normalized=op.is_normalized,
            activation=op.activation,
        )

    def _output_place(self) -> tuple[Operand, int]:
        """Where a step leaves what it returns, and the width of a row of it."""
        return self._operand(self._graph.output), self._graph.values[self._graph.output].width

    def _operand(self, name: str) -> Operand:
        alias = self._memory.alias_by_value.get(name)
        root, column = (alias.root, alias.start) if alias else (name, 0)
        value = self._graph.values[root]
        return (int(value.rows == "selected"), self._memory.offset_by_value[root], column, value.width)

    def _width(self, name: str) -> int:
        return self._graph.values[name].width

    def _matrix(self, name: str) -> int:
        return self._matrices(name)[0]

    def _matrices(self, name: str) -> list[int]:
        """The matrices of a weight: one, or one an expert."""
        if name not in self._matrix_ids:
            m = self._weights.matrices.get(name)
            shape = self._graph.weights[name]
            # one expert is a matrix, whichever way its shape is written
            if m is None or m.shape != (shape[1:] if len(shape) == 3 and shape[0] == 1 else shape):
                packed = "none" if m is None else f"one of shape {m.shape}"
                raise FormatError(f"the model needs a packed weight {name!r} of shape {shape}; there is {packed}")
            self._matrix_ids[name] = [
                self._executor.add_weight(m.format, m.num_outputs, m.num_inputs, m.part(index))
                for index in range(m.count)
            ]
        return self._matrix_ids[name]

    def _vector(self, name: str) -> int:
        if name not in self._vector_ids:
            self._vector_ids[name] = self._executor.add_vector(self._values(name))
        return self._vector_ids[name]

    def _values(self, name: str) -> NDArray[np.float32]:
        values, shape = self._weights.vectors.get(name), self._graph.weights[name]
        if values is None or values.shape != shape:
            given = "none" if values is None else f"one of shape {values.shape}"
            raise FormatError(f"the model needs a vector {name!r} of shape {shape}; there is {given}")
        return values

    def _rotary(self, rotary: Rotary | None) -> int:
        if rotary is None:
            return -1
        if rotary not in self._rotary_ids:
            frequencies = np.array(rotary.frequencies)
            if rotary.frequency_factors:
                frequencies /= self._values(rotary.frequency_factors)
            is_interleaved = rotary.pairing == "interleaved"
            self._rotary_ids[rotary] = self._executor.add_rotary(frequencies.tolist(), is_interleaved, rotary.magnitude)
        return self._rotary_ids[rotary]
