"""Single kernels for tests; shapes are the caller's duty."""

from collections.abc import Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray

class Weight:
    pass

def weight(
    format: str,
    num_outputs: int,
    num_inputs: int,
    packed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order="C", device="cpu", writable=False)],
) -> Weight: ...
def linear(
    isa: str,
    input: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
    weights: Sequence[Weight],
    biases: Sequence[object],
    norm: object | None,
    norm_eps: float,
    gated: str,
    residual: object | None,
    output: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
    repeats: int = 1,
) -> float: ...
def attention(
    isa: str,
    query: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
    key: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
    value: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
    blocks: Annotated[NDArray[numpy.int32], dict(shape=(None,), order="C", device="cpu", writable=False)],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float,
    cos_sin: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)],
    rotary_dims: int,
    is_interleaved: bool,
    first: int,
    chunk: int,
    window: int,
    softcap: float,
    is_causal: bool,
    output: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
) -> None: ...
def normalize(
    isa: str,
    input: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
    weight: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)],
    bias: object | None,
    eps: float,
    is_layer: bool,
    output: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
) -> None: ...
def rope(
    isa: str,
    input: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
    cos_sin: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)],
    dims: int,
    is_interleaved: bool,
    head_dim: int,
    positions: Annotated[NDArray[numpy.int32], dict(shape=(None,), order="C", device="cpu", writable=False)],
    output: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
) -> None: ...
def gated_activation(
    isa: str,
    gate: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
    up: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
    activation: str,
    output: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
) -> None: ...
def activate(
    isa: str,
    input: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
    activation: str,
    output: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
) -> None: ...
def scale(
    isa: str,
    input: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
    factor: float,
    output: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
) -> None: ...
def softcap(
    isa: str,
    input: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
    cap: float,
    output: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
) -> None: ...
def choose_experts(
    isa: str,
    logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
    is_normalized: bool,
    experts: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order="C", device="cpu")],
    weights: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
) -> None: ...
def add(
    isa: str,
    left: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
    right: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
    output: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")],
) -> None: ...
def unpack(
    isa: str, weight: Weight, output: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device="cpu")]
) -> None: ...
