"""Small random models in stored formats, for tests that run whole graphs natively."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from subsecond.backends.batch import Float32, ForwardBatch, Int32
from subsecond.backends.native import NativeBackend, NativeConfig
from subsecond.backends.native.weights import PackedMatrix, PackedWeights
from subsecond.backends.protocol import Backend
from subsecond.backends.torch import TorchBackend
from subsecond.graph.builder import GraphBuilder
from subsecond.graph.graph import Graph
from subsecond.graph.memory import plan_memory
from subsecond.graph.ops import MixtureOfExperts
from subsecond.graph.passes.pipeline import PASSES, passes_until
from subsecond.graph.plan import Segment
from subsecond.models.config import ModelConfig, RopeScaling
from subsecond.models.families.registry import build_graph, find_family
from subsecond.models.families.transformer import build_transformer
from tests.parity.kernel_cases import random_weight

NUM_BLOCKS = 40
MAX_ROWS = 600
# Of the even and of the odd layers. Experts are narrower than the blocks of the K formats.
LAYER_FORMATS: tuple[Mapping[str, str], ...] = (
    {
        "attn_qkv": "Q4_0",
        "attn_q.": "Q4_1",
        "attn_k.": "Q8_0",
        "attn_v.": "Q5_0",
        "attn_output": "Q4_0",
        "ffn_gate_inp": "F32",
        "ffn_gate_exps": "Q8_0",
        "ffn_up_exps": "Q4_1",
        "ffn_down_exps": "Q5_0",
        "ffn_gate": "Q4_K",
        "ffn_up": "Q4_K",
        "ffn_down": "Q6_K",
    },
    {
        "attn_qkv": "Q4_0",
        "attn_q.": "Q5_1",
        "attn_k.": "IQ4_NL",
        "attn_v.": "Q2_K",
        "attn_output": "IQ4_NL",
        "ffn_gate_inp": "F32",
        "ffn_gate_exps": "Q5_1",
        "ffn_up_exps": "IQ4_NL",
        "ffn_down_exps": "Q4_0",
        "ffn_gate": "Q3_K",
        "ffn_up": "IQ4_XS",
        "ffn_down": "Q5_K",
    },
)


@dataclass(frozen=True)
class StoredModel:
    """A random model: its unfused graph, packed weights, and what they decode to."""

    graph: Graph
    packed: PackedWeights
    decoded: dict[str, torch.Tensor]

    def native(self, isa: str, *, num_threads: int = 2, until: str | None = None, kv: str = "") -> NativeBackend:
        graph = passes_until(self.graph, until or PASSES[-1][0])
        segment = Segment("native", "cpu", graph, plan_memory(graph))
        return NativeBackend(segment, self.packed, NativeConfig(isa, num_threads, MAX_ROWS, NUM_BLOCKS, kv))

    @property
    def has_experts(self) -> bool:
        return any(isinstance(op, MixtureOfExperts) for op in self.graph.ops)

    def reference(self) -> TorchBackend:
        return TorchBackend(self.graph, self.decoded, num_blocks=NUM_BLOCKS, block_tokens=32, max_rows=MAX_ROWS)


# By name of the model: what differs from `_config`. Layers, widths and windows are small; what a real model of the
# family has (norms, activations, caps, windows, experts) is all there.
_MODELS: Mapping[str, Mapping[str, object]] = {
    "llama": {"num_heads": 10, "head_dim": 32, "rope_dims": 32},  # five query heads a key/value head
    "llama_experts": {"family": "llama", "ff_width": 64, "num_experts": 5, "num_chosen_experts": 2},
    "qwen2": {},
    "qwen3": {"rope_dims": 32},
    "qwen3moe": {"ff_width": 96, "num_experts": 7, "num_chosen_experts": 3, "has_normalized_experts": False},
    "smollm3": {"rope_free_layers": (1,), "rope_pairing": "interleaved"},
    "gemma2": {"window": 21, "attention_softcap": 0.5, "logit_softcap": 2.0, "attention_scale": 0.2},
    "gemma3": {"window": 40, "window_layers": (0,), "num_kv_heads": 1},
    "phi3": {"window": 33, "rope_scaling": RopeScaling("linear", 2.0, 512)},
    "olmo2": {"rope_scaling": RopeScaling("yarn", 4.0, 64)},
    "gpt2": {"rope_dims": 0, "num_kv_heads": 4},
    "bert": {"rope_dims": 0, "num_kv_heads": 4, "num_token_types": 2},
}
MODELS = tuple(_MODELS)
CAUSAL_MODELS = tuple(name for name in MODELS if name != "bert")
_UNTIED = ("qwen2", "phi3", "llama_experts")


def _config(name: str) -> ModelConfig:
    fields: dict[str, Any] = {
        "family": name,
        "name": "random",
        "num_layers": 2,
        "width": 256,
        "ff_width": 512,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 48,
        "vocab_size": 301,
        "context_length": 1024,
        "norm_eps": 1e-5,
        "rope_dims": 48,
    }
    config = ModelConfig(**(fields | dict(_MODELS[name])))
    return find_family(config.family).complete(config)


def weight_shapes(config: ModelConfig, optional: Iterable[str] = ()) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights that the family asks for; `optional` names those that a file may lack and this one has."""
    found: dict[str, tuple[int, ...]] = {}

    def record(builder: GraphBuilder, name: str, shape: tuple[int, ...]) -> None:
        found[name] = shape
        builder._weights[name] = shape

    with patch.object(GraphBuilder, "_weight", record):
        build_transformer(config, dict.fromkeys(optional, ()), find_family(config.family).form)
    return found


@cache
def stored_model(name: str) -> StoredModel:
    """A random model of `MODELS`: odd widths, formats mixed within layers."""
    config = _config(name)
    shapes = weight_shapes(config, ("output.weight",) if name in _UNTIED else ())
    rng = np.random.default_rng(3)
    matrices, vectors, decoded = {}, {}, {}
    for weight_name, shape in shapes.items():
        if len(shape) == 1:
            # small norms keep attention flat: a sharp one magnifies roundings until no bound holds
            vectors[weight_name] = rng.uniform(0.05, 0.15, shape).astype(np.float32)
            decoded[weight_name] = torch.from_numpy(vectors[weight_name])
            continue
        matrices[weight_name], values = _random_matrix(weight_name, shape, rng)
        decoded[weight_name] = torch.from_numpy(values)
    return StoredModel(build_graph(config, shapes), PackedWeights(matrices, vectors), decoded)


def _random_matrix(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[PackedMatrix, Float32]:
    *count, num_outputs, num_inputs = shape
    kind = next((f for part, f in LAYER_FORMATS["blk.1." in name].items() if part in name), "F16")
    if num_inputs % 32:
        kind = "BF16"
    # a router that hardly tells its experts apart would choose others after any rounding
    gain = 32.0 if "ffn_gate_inp" in name else 1.0
    parts = [random_weight(kind, num_outputs, num_inputs, rng, gain=gain) for _ in range(*count or (1,))]
    packed = PackedMatrix(kind, num_outputs, num_inputs, np.concatenate([w.packed for w in parts]), len(parts))
    return packed, np.stack([w.values for w in parts]).reshape(shape)


def batch_of(parts: list[tuple[Int32, int, Int32]], *, selected: Int32 | None = None) -> ForwardBatch:
    """A step of several sequences: (token ids, first position, block table) each; all rows selected by default."""
    num_rows = sum(len(ids) for ids, _, _ in parts)
    return ForwardBatch(
        token_ids=np.concatenate([ids for ids, _, _ in parts]),
        positions=np.concatenate([np.arange(at, at + len(ids), dtype=np.int32) for ids, at, _ in parts]),
        row_sequence=np.repeat(np.arange(len(parts), dtype=np.int32), [len(ids) for ids, _, _ in parts]),
        block_tables=np.stack([blocks for _, _, blocks in parts]),
        logits_rows=np.arange(num_rows, dtype=np.int32) if selected is None else selected,
    )


def run_alone(backend: Backend, tokens: Int32, chunk: int, blocks: Int32) -> Float32:
    """Logits [tokens, vocab] of one sequence, `chunk` tokens a step."""
    steps = [
        backend.forward(batch_of([(tokens[at : at + chunk], at, blocks)])).copy() for at in range(0, len(tokens), chunk)
    ]
    return np.concatenate(steps)
