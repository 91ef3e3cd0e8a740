"""Small random models in stored formats, for tests that run whole graphs natively."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from subsecond.backends.batch import Float32, ForwardBatch, Int32
from subsecond.backends.native import NativeBackend, NativeConfig
from subsecond.backends.native.weights import PackedMatrix, PackedWeights
from subsecond.backends.protocol import Backend
from subsecond.backends.torch import TorchBackend
from subsecond.graph.graph import Graph
from subsecond.graph.memory import plan_memory
from subsecond.graph.passes.pipeline import PASSES, passes_until
from subsecond.graph.plan import Segment
from subsecond.models.config import ModelConfig
from subsecond.models.families.registry import build_graph
from tests.parity.kernel_cases import random_weight
from tests.unit.tiny_decoder import tiny_shapes

NUM_BLOCKS = 40
MAX_ROWS = 600
LAYER_FORMATS = (
    {
        "attn_q": "Q4_1",
        "attn_k": "Q8_0",
        "attn_v": "Q5_0",
        "attn_output": "Q4_0",
        "ffn_gate": "Q4_K",
        "ffn_up": "Q4_K",
        "ffn_down": "Q6_K",
    },
    {
        "attn_q": "Q5_1",
        "attn_k": "IQ4_NL",
        "attn_v": "Q2_K",
        "attn_output": "IQ4_NL",
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

    def native(self, isa: str, *, num_threads: int = 2, until: str | None = None) -> NativeBackend:
        graph = passes_until(self.graph, until or PASSES[-1][0])
        segment = Segment("native", "cpu", graph, plan_memory(graph))
        return NativeBackend(segment, self.packed, NativeConfig(isa, num_threads, MAX_ROWS, NUM_BLOCKS))

    def reference(self) -> TorchBackend:
        return TorchBackend(self.graph, self.decoded, num_blocks=NUM_BLOCKS, block_tokens=32, max_rows=MAX_ROWS)


@cache
def stored_model(family: str) -> StoredModel:
    """Two layers, five query heads a key/value head in llama and odd widths in both; formats mixed within layers."""
    config = ModelConfig(
        family=family,
        name="random",
        num_layers=2,
        width=256,
        ff_width=512,
        num_heads=10 if family == "llama" else 4,
        num_kv_heads=2,
        head_dim=32 if family == "llama" else 48,
        vocab_size=301,
        context_length=1024,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rope_dims=32 if family == "llama" else 48,
    )
    rng = np.random.default_rng(3)
    shapes = tiny_shapes(config, is_tied=family == "llama")
    matrices, vectors, decoded = {}, {}, {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            # small norms keep attention flat: a sharp one magnifies roundings until no bound holds
            vectors[name] = rng.uniform(0.05, 0.15, shape).astype(np.float32)
            decoded[name] = torch.from_numpy(vectors[name])
            continue
        formats = LAYER_FORMATS["blk.1." in name]
        kind = next((f for part, f in formats.items() if part in name), "F16")
        if shape[1] % 32:
            kind = "BF16"
        num_outputs, num_inputs = shape
        weight = random_weight(kind, num_outputs, num_inputs, rng)
        matrices[name] = PackedMatrix(kind, num_outputs, num_inputs, weight.packed)
        decoded[name] = torch.from_numpy(weight.values)
    return StoredModel(build_graph(config, shapes), PackedWeights(matrices, vectors), decoded)


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
