"""Which packed format each weight of a graph gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from subsecond.backends.native.weight_formats import (
    VECTOR_FORMAT,
    check_weights,
    choose_formats,
    weights_of_formats,
)
from subsecond.core.errors import InputError, UnsupportedError
from subsecond.formats.gguf_types import TensorType
from subsecond.graph.plan import compile_plan
from subsecond.models.families.registry import build_graph
from tests.unit.tiny_decoder import TINY, tiny_shapes

WIDE = replace(TINY, width=64, ff_width=96, num_heads=8)


class Types:
    """A source that has types only; `other` maps names to the types that differ."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], usual: TensorType, **other: TensorType) -> None:
        self.shapes, self._usual, self._other = shapes, usual, other

    def type_of(self, name: str) -> TensorType:
        return self._other.get(name.replace(".", "_"), self._usual)

    def raw(self, name: str) -> NDArray[np.uint8]:
        raise AssertionError(f"{name} is not to be read")

    def dequantize(self, name: str) -> NDArray[np.float32]:
        raise AssertionError(f"{name} is not to be read")


def formats(weights: str, usual: TensorType, *, is_tied: bool = True, **other: TensorType) -> dict[str, str]:
    shapes = tiny_shapes(WIDE, is_tied=is_tied)
    graph = compile_plan(build_graph(WIDE, shapes)).segments[0].graph
    return choose_formats(graph, Types(shapes, usual, **other), weights)  # type: ignore[arg-type]


def test_stored_weights_keep_their_types() -> None:
    found = formats("stored", TensorType.Q4_0, token_embd_weight=TensorType.Q6_K)
    assert found["token_embd.weight"] == "Q6_K"
    assert found["output_norm.weight"] == VECTOR_FORMAT
    assert {f for name, f in found.items() if name.startswith("blk") and "norm" not in name} == {"Q4_0"}
    assert weights_of_formats(found) == "stored"


@pytest.mark.parametrize(("weights", "expected"), [("int8", "INT8"), ("int4", "INT4")])
def test_lossy_weights_are_those_of_the_layers(weights: str, expected: str) -> None:
    found = formats(weights, TensorType.Q4_0, is_tied=False, token_embd_weight=TensorType.Q6_K)
    matrices = {f for name, f in found.items() if name.startswith("blk") and "norm" not in name}
    assert matrices == {expected}
    assert (found["token_embd.weight"], found["output.weight"]) == ("Q6_K", "Q4_0")
    assert weights_of_formats(found) == weights


def test_unquantized_tables_and_heads_become_q8_0_beside_lossy_weights_only() -> None:
    assert formats("int8", TensorType.F16)["token_embd.weight"] == "Q8_0"
    assert formats("stored", TensorType.F16)["token_embd.weight"] == "F16"


def test_a_type_without_kernels_can_be_made_lossy_but_not_kept() -> None:
    assert formats("int8", TensorType.Q4_0, blk_0_attn_q_weight=TensorType.MXFP4)["blk.0.attn_q.weight"] == "INT8"
    with pytest.raises(UnsupportedError, match=r"'blk.0.attn_q.weight' is stored as MXFP4; the native kernels read"):
        formats("stored", TensorType.Q4_0, blk_0_attn_q_weight=TensorType.MXFP4)


def test_another_word_is_refused_with_those_that_are_allowed() -> None:
    with pytest.raises(InputError, match=r"weights='int2' is not allowed; give one of stored, int8, int4"):
        check_weights("int2")
