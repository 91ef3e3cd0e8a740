"""Kernels, executor and sampler of subsecond in C++."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy
import numpy.typing
from numpy.typing import NDArray

from subsecond._native import kernels as kernels


def cpu_features() -> dict[str, bool]:
    """Instruction sets that processor and operating system allow."""

def available_isas() -> list[str]:
    """Instruction sets with kernels that run here, best first."""

def missing_features() -> dict[str, list[str]]:
    """
    What each instruction set of this build, best first, needs and does not find here.
    """

def self_test(isa: str) -> list[tuple[str, float, float, bool]]:
    """
    Compare with the scalar kernels: list of (kernel, relative error, tolerance, has passed).
    """

def measure_peaks(num_threads: int, try_s: float = 0.002) -> list[tuple[str, str, float]]:
    """
    Multiply instructions of every set that runs here: list of (set, instruction, operations a second).
    """

def measure_read_rates(num_threads: int, thread_bytes: Sequence[int], limit_s: float = 1.0) -> list[tuple[int, int, float]]:
    """
    Read rates of one thread and of all, for working sets of a thread, as many as `limit_s` seconds allow: list of (threads, bytes of a thread, bytes a second of all).
    """

def measure_pool(num_threads: int) -> tuple[float, float]:
    """Seconds of an empty run of the pool, and of a barrier within one."""

def measure_processor_share(num_threads: int, seconds: float = 0.1) -> float:
    """
    Share of the processors' time that threads get which ask for all of it.
    """

def packed_size(format: str, num_outputs: int, num_inputs: int) -> int:
    """Bytes of a packed weight, of all formats but F16_SPARSE and F16_LIST."""

def pack_into(format: str, num_outputs: int, num_inputs: int, stored: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], packed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """Reorder a stored tensor into its packed form."""

def quantize_into(format: str, num_outputs: int, num_inputs: int, rows: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], begin: int, packed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """
    Quantize outputs from `begin` on, float32 rows that are rotated in place, into a weight of a channel format.
    """

def sparse_size(format: str, num_outputs: int, num_inputs: int, rows: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order='C', device='cpu', writable=False)], begin: int) -> int:
    """
    Bytes that outputs from `begin` on, bits of float16, add to a weight of format F16_SPARSE or F16_LIST.
    """

def pack_sparse_into(format: str, num_outputs: int, num_inputs: int, rows: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order='C', device='cpu', writable=False)], begin: int, packed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> int:
    """
    Pack outputs from `begin` on, those before having been packed; returns where the next ones begin.
    """

def allocate(num_bytes: int) -> numpy.typing.NDArray[numpy.uint8]:
    """Zeroed uint8 array in huge pages where the system grants them."""

def arithmetic(isa: str) -> str:
    """Arithmetic of the linears of an instruction set: i16 or bf16."""

def kv_types(isa: str) -> list[str]:
    """
    Types of keys and values of an instruction set, the default first: f16 and int8, bf16 with AMX.
    """

def kv_head_bytes(isa: str, kv_type: str, head_dim: int) -> int:
    """Bytes of one key/value block of one head."""

BLOCK_TOKENS: int = 32

class Executor:
    """Runs one segment of a plan; see executor.h."""

    def __init__(self, isa: str, kv_type: str, num_threads: int, max_rows: int, output_width: int, all_floats: int, selected_floats: int, num_layers: int, num_blocks: int, num_kv_heads: int, head_dim: int) -> None: ...

    def add_weight(self, format: str, num_outputs: int, num_inputs: int, packed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> int: ...

    def add_vector(self, values: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> int: ...

    def add_rotary(self, frequencies: Sequence[float], is_interleaved: bool, magnitude: float) -> int: ...

    def add_embed(self, output: object, weight: int, index: str) -> None: ...

    def add_linear(self, output: object, input: object, weights: Sequence[int], biases: Sequence[int], norm: int, norm_eps: float, gated: str, residual: object | None) -> None: ...

    def add_attention(self, output: object, query: object, key: object, value: object, layer: int, num_heads: int, num_kv_heads: int, head_dim: int, scale: float, rotary: int, window: int, softcap: float, is_causal: bool) -> None: ...

    def add_normalize(self, output: object, input: object, width: int, weight: int, bias: int, eps: float, is_layer: bool, group_width: int) -> None: ...

    def add_experts(self, output: object, input: object, router: object, weights: Sequence[int], num_chosen: int, is_normalized: bool, activation: str) -> None: ...

    def add_rope(self, output: object, input: object, width: int, head_dim: int, rotary: int) -> None: ...

    def add_gated_activation(self, output: object, gate: object, up: object, width: int, activation: str) -> None: ...

    def add_activate(self, output: object, input: object, width: int, activation: str) -> None: ...

    def add_scale(self, output: object, input: object, width: int, factor: float) -> None: ...

    def add_softcap(self, output: object, input: object, width: int, cap: float) -> None: ...

    def add_add(self, output: object, left: object, right: object, width: int) -> None: ...

    def add_select_rows(self, output: object, input: object, width: int) -> None: ...

    def finish(self, output: object) -> None: ...

    def forward(self, token_ids: numpy.typing.NDArray[numpy.int32], positions: numpy.typing.NDArray[numpy.int32], row_sequence: numpy.typing.NDArray[numpy.int32], block_tables: numpy.typing.NDArray[numpy.int32], logits_rows: numpy.typing.NDArray[numpy.int32]) -> numpy.typing.NDArray[numpy.float32]: ...

    def set_profiling(self, is_on: bool) -> None: ...

    def call_ns(self) -> list[int]: ...

    def kv_bytes(self) -> int: ...

def sample(logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], temperature: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], top_k: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], top_p: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], min_p: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], repetition_penalty: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], presence_penalty: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], frequency_penalty: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], seed: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], sample_index: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], position: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], bias_offsets: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], bias_ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], bias_values: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], history_offsets: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], history_ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], history_counts: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], forced_ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, mask_rows: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, masks: Annotated[NDArray[numpy.uint32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, num_logprobs: int, isa: str, num_threads: int) -> tuple[Any, Any, Any, Any, Any]:
    """
    Draws one token a row: (token_ids, logprobs, top_ids, top_logprobs, has_failed). Arguments as in SampleBatch.
    """
