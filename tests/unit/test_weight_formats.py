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
    name_formats,
    name_of_readings,
    readings_of,
)
from subsecond.core.errors import FormatError, InputError, UnsupportedError
from subsecond.formats.gguf_types import TensorType
from subsecond.graph.graph import Graph
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


def graph_of(*, is_tied: bool = True) -> Graph:
    return compile_plan(build_graph(WIDE, tiny_shapes(WIDE, is_tied=is_tied))).segments[0].graph


def formats(
    readings: Mapping[str, str] | str, usual: TensorType, *, is_tied: bool = True, **other: TensorType
) -> dict[str, str]:
    wanted = {"default": readings} if isinstance(readings, str) else readings
    source = Types(tiny_shapes(WIDE, is_tied=is_tied), usual, **other)
    return choose_formats(graph_of(is_tied=is_tied), source, wanted)  # type: ignore[arg-type]


def test_stored_weights_keep_their_types() -> None:
    found = formats("stored", TensorType.Q4_0, token_embd_weight=TensorType.Q6_K)
    assert found["token_embd.weight"] == "Q6_K"
    assert found["output_norm.weight"] == VECTOR_FORMAT
    assert {f for name, f in found.items() if name.startswith("blk") and "norm" not in name} == {"Q4_0"}
    assert name_formats(graph_of(), found) == "faithful"
    assert formats({}, TensorType.Q4_0, token_embd_weight=TensorType.Q6_K) == found


@pytest.mark.parametrize(
    ("weights", "expected"), [("int8", "INT8"), ("int4", "INT4"), ("nested8", "NESTED8"), ("nested4", "NESTED4")]
)
def test_lossy_weights_are_those_of_the_layers(weights: str, expected: str) -> None:
    found = formats(weights, TensorType.Q4_0, is_tied=False, token_embd_weight=TensorType.Q6_K)
    matrices = {f for name, f in found.items() if name.startswith("blk") and "norm" not in name}
    assert matrices == {expected}
    assert (found["token_embd.weight"], found["output.weight"]) == ("Q6_K", "Q4_0")
    assert name_formats(graph_of(is_tied=False), found) == weights


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


def test_sparse_weights_are_those_of_the_layers_and_unquantized() -> None:
    found = formats("sparse", TensorType.F16, blk_0_attn_q_weight=TensorType.BF16)
    assert {f for name, f in found.items() if name.startswith("blk") and "norm" not in name} == {"F16_SPARSE"}
    assert found["token_embd.weight"] == "F16"
    assert name_formats(graph_of(), found) == "sparse"
    with pytest.raises(UnsupportedError, match=r"'blk.0.attn_q.weight' is stored as Q4_0; the reading 'sparse' is for"):
        formats("sparse", TensorType.F16, blk_0_attn_q_weight=TensorType.Q4_0)


def test_readings_differ_from_layer_to_layer() -> None:
    attention = {f"blk.1.attn_{part}.weight": "stored" for part in "qkv"}
    found = formats({"default": "int8", **attention, "blk.0.ffn_down.weight": "int4"}, TensorType.F16, is_tied=False)
    assert {found[name] for name in attention} == {"F16"}
    assert found["blk.0.ffn_down.weight"] == "INT4"
    assert found["blk.1.ffn_down.weight"] == found["blk.0.attn_q.weight"] == "INT8"
    assert found["token_embd.weight"] == found["output.weight"] == "Q8_0"
    assert name_formats(graph_of(is_tied=False), found) == "faithful+int8+int4"


def test_without_a_default_only_what_is_named_has_another_reading() -> None:
    found = formats({"blk.0.ffn_down.weight": "int8"}, TensorType.F16, is_tied=False)
    assert [name for name, packed in found.items() if packed not in ("F16", VECTOR_FORMAT)] == ["blk.0.ffn_down.weight"]
    assert formats({"output.weight": "int8"}, TensorType.F16, is_tied=False)["output.weight"] == "Q8_0"
    assert formats({"output.weight": "int8"}, TensorType.Q6_K, is_tied=False)["output.weight"] == "Q6_K"
    assert formats({"default": "int8", "token_embd.weight": "stored"}, TensorType.F16)["token_embd.weight"] == "F16"


@pytest.mark.parametrize("name", ["blk.0.attn_k.weight", "blk.1.ffn_up.weight"])
def test_weights_of_one_product_share_a_reading(name: str) -> None:
    with pytest.raises(FormatError, match=rf"multiplied as one must share a reading; .*'{name}': 'int4'"):
        formats({"default": "int8", name: "int4"}, TensorType.F16)


def test_a_head_has_no_reading_of_channel_formats() -> None:
    with pytest.raises(FormatError, match=r"reading of 'output.weight' is 'int4'; .* can have stored or int8"):
        formats({"output.weight": "int4"}, TensorType.F16, is_tied=False)


def test_weights_that_are_asked_for_override_readings() -> None:
    readings = {"default": "int8", "blk.0.ffn_down.weight": "int4"}
    assert readings_of(readings, None) == readings
    assert readings_of(readings, "int4") == {"default": "int4"}
    assert [name_of_readings(given) for given in ({}, {"default": "int4"}, readings)] == ["stored", "int4", "mixed"]
