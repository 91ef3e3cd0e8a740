"""From a checkpoint to a running native backend: chooses kernels, threads and memory, and packs weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from subsecond import _native
from subsecond.backends.native.backend import BLOCK_TOKENS, NativeBackend, NativeConfig
from subsecond.backends.native.weight_formats import (
    NESTED_READINGS,
    VECTOR_FORMAT,
    Weights,
    check_weights,
    choose_formats,
    name_of_readings,
    readings_of,
)
from subsecond.backends.native.weights import (
    LAYOUT_VERSION,
    PackedWeights,
    pack_weights,
    read_packed_weights,
)
from subsecond.core.errors import InputError, ResourceError
from subsecond.core.hardware import probe
from subsecond.graph.plan import compile_plan
from subsecond.models.checkpoint import Checkpoint
from subsecond.models.config import ModelConfig

ISA_VARIABLE = "SUBSECOND_ISA"  # holds the kernels to a lower instruction set
KV_MEMORY_SHARE = 0.25  # of the available memory, when the caller names no number of tokens
MIN_CONTEXT_TOKENS = 2048

Kv = Literal["f16", "int8"]
"""How keys and values are kept: in half precision, or lossily in codes of eight bits, which take about half of that."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KernelTest:
    """One kernel compared with the scalar one: largest difference relative to the largest value."""

    kernel: str
    error: float
    tolerance: float
    has_passed: bool


@cache
def self_test(isa: str) -> tuple[KernelTest, ...]:
    """Compare every kernel of an instruction set with the scalar one; some milliseconds, once a process."""
    return tuple(KernelTest(*result) for result in _native.self_test(isa))


@cache
def choose_isa(wanted: str | None = None) -> str:
    """The instruction set to run: `wanted`, or what SUBSECOND_ISA says, or the best one here that passes its test.

    Raises InputError for one that cannot run here or that computes wrong results here.
    """
    available = _native.available_isas()
    wanted = wanted or os.environ.get(ISA_VARIABLE) or None
    if wanted is not None:
        if wanted not in available:
            missing = ", ".join(_native.missing_features().get(wanted, ["this build has no kernels for it"]))
            raise InputError(
                f"instruction set {wanted!r} cannot run here ({missing}); available: {', '.join(available)}"
            )
        failed = _failed(wanted)
        if failed:
            raise InputError(
                f"the {wanted} kernels compute wrong results here ({failed}); leave the choice to subsecond"
            )
        return wanted
    for isa in available:
        failed = _failed(isa)
        if not failed:
            return isa
        _log.warning("the %s kernels compute wrong results on this machine (%s) and are not used", isa, failed)
    raise AssertionError("the scalar kernels differ from themselves")


def load(
    checkpoint: Checkpoint,
    *,
    isa: str | None = None,
    num_threads: int | None = None,
    context_tokens: int | None = None,
    max_rows: int = 512,
    weights: Weights | None = None,
    kv: Kv | None = None,
) -> NativeBackend:
    """A backend for `checkpoint`, from its artifact where it has one.

    isa             instruction set; None for the best
    num_threads     None for one a processor that this process may use
    context_tokens  positions that the key/value blocks hold, over all sequences; None for the model's context length,
                    or less where that would take more than a quarter of the available memory
    max_rows        most rows of one step
    weights         how linears read their weights; None for what the artifact holds, without one for the readings of
                    the checkpoint, "stored" where it has none
    kv              how keys and values are kept; None for the default of the instruction set: bf16 with AMX, else f16
    """
    if weights is not None:
        check_weights(weights)
    if kv is not None:
        check_kv(kv)
    if num_threads is not None and not 1 <= num_threads <= 1024:
        raise InputError(f"num_threads is {num_threads}; it must lie between 1 and 1024")
    chosen = choose_isa(isa)
    segment = compile_plan(checkpoint.graph(context_tokens)).segments[0]
    threads = num_threads or probe().num_usable_cores
    kv_type = kv or _native.kv_types(chosen)[0]
    num_blocks = _num_blocks(checkpoint.config, chosen, kv_type, context_tokens)
    config = NativeConfig(chosen, threads, max_rows, num_blocks, kv_type)
    if checkpoint.artifact is not None and is_packed(checkpoint, weights):
        packed = read_packed_weights(checkpoint.artifact)
        packed = packed.read_as(weights) if weights in NESTED_READINGS else packed
    else:
        formats = choose_formats(segment.graph, checkpoint.weights, readings_of(checkpoint.readings, weights))
        packed = pack_weights(checkpoint.weights, formats, threads)
    return NativeBackend(segment, packed, config)


def check_kv(kv: str) -> None:
    """InputError unless `kv` is a way to keep keys and values."""
    if kv not in get_args(Kv):
        raise InputError(f"kv={kv!r} is not allowed; give one of {', '.join(get_args(Kv))}, or leave it out")


def is_packed(checkpoint: Checkpoint, weights: str | None = None) -> bool:
    """Whether `checkpoint` has an artifact in the layout of these kernels, and with such weights; None for any.

    `weights` is a name that `packed_weights` gives; the two nested readings have the same bytes.
    """
    if checkpoint.artifact is None:
        return False
    packing = checkpoint.artifact.manifest.packing
    found = packing.get("weights", "stored")
    is_nested = found in NESTED_READINGS and weights in NESTED_READINGS
    return packing.get("layout") == LAYOUT_VERSION and (is_nested or weights in (None, found))


def packed_weights(checkpoint: Checkpoint, weights: Weights | None) -> str:
    """The name of the weights that `write_artifact` packs: a reading of all layers, or "mixed"."""
    return name_of_readings(readings_of(checkpoint.readings, weights))


def write_artifact(
    checkpoint: Checkpoint,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    weights: Weights | None = None,
) -> None:
    """Pack the weights of `checkpoint` into an artifact in `folder`; `progress` gets (bytes done, bytes in all).

    `weights` None packs them by the readings of the checkpoint, "stored" where it has none.
    """
    if weights is not None:
        check_weights(weights)
    readings = readings_of(checkpoint.readings, weights)
    # Every tensor of the file that some graph of the model reads: which one it is depends on the context.
    plans = [compile_plan(checkpoint.graph(context_tokens)) for context_tokens in (None, 1)]
    formats: dict[str, str] = {}
    for plan in plans:
        formats |= choose_formats(plan.segments[0].graph, checkpoint.weights, readings)
    packed: PackedWeights = pack_weights(checkpoint.weights, formats, probe().num_usable_cores, progress)
    packing = {"layout": LAYOUT_VERSION, "weights": name_of_readings(readings)}
    with checkpoint.artifact_writer(folder, packing) as writer:
        for name, matrix in packed.matrices.items():
            n, k = matrix.num_outputs, matrix.num_inputs
            writer.add_tensor(name, matrix.data, packed_format=matrix.format, n=n, k=k, count=matrix.count)
        for name, vector in packed.vectors.items():
            writer.add_tensor(name, vector.view("uint8"), packed_format=VECTOR_FORMAT, n=1, k=vector.size)


def report() -> dict[str, Any]:
    """What runs here and why: instruction sets, the chosen one, its arithmetic and the result of every self-test.

    With a SUBSECOND_ISA that cannot run here, `chosen` is None and `error` says why; otherwise `error` is None.
    """
    available = _native.available_isas()
    forced = os.environ.get(ISA_VARIABLE) or None
    chosen, error = None, None
    try:
        chosen = choose_isa(forced)
    except InputError as refusal:
        error = f"{ISA_VARIABLE}={forced}: {refusal}"
    return {
        "error": error,
        "chosen": chosen,
        "arithmetic": None if chosen is None else _native.arithmetic(chosen),
        "kv_types": [] if chosen is None else _native.kv_types(chosen),
        "forced_by": ISA_VARIABLE if forced else None,
        "features": _native.cpu_features(),
        "available": available,
        "instruction_sets": [
            _isa_report(isa, missing, chosen, forced) for isa, missing in _native.missing_features().items()
        ],
        "self_test": {isa: f"failed: {_failed(isa)}" if _failed(isa) else "passed" for isa in available},
        "kernels": {} if chosen is None else {test.kernel: chosen for test in self_test(chosen)},
    }


def _isa_report(isa: str, missing: list[str], chosen: str | None, forced: str | None) -> dict[str, Any]:
    """Whether an instruction set can run here, and why it is chosen or not."""
    failed = None if missing else _failed(isa)
    if missing:
        reason = f"missing {', '.join(missing)}"
    elif failed:
        reason = f"wrong results in the self-test: {failed}"
    elif isa == chosen:
        reason = f"{ISA_VARIABLE}={forced} asks for it" if forced else "the best that can run here"
    elif forced:
        reason = f"{ISA_VARIABLE}={forced} holds the kernels to another"
    else:
        reason = f"{chosen} is better"
    return {
        "isa": isa,
        "arithmetic": None if missing else _native.arithmetic(isa),
        "can_run": not missing and not failed,
        "is_chosen": isa == chosen,
        "missing": missing,
        "self_test": None if missing else "failed" if failed else "passed",
        "reason": reason,
    }


def _failed(isa: str) -> str:
    return ", ".join(test.kernel for test in self_test(isa) if not test.has_passed)


def kv_position_bytes(config: ModelConfig, isa: str, kv: Kv | None = None) -> int:
    """Bytes of the keys and values of one position of all layers, rounded up; `kv` as in `load`."""
    return -(-_block_bytes(config, isa, kv or _native.kv_types(isa)[0]) // BLOCK_TOKENS)


def _block_bytes(config: ModelConfig, isa: str, kv_type: str) -> int:
    return _native.kv_head_bytes(isa, kv_type, config.head_dim) * config.num_kv_heads * config.num_layers


def _num_blocks(config: ModelConfig, isa: str, kv_type: str, context_tokens: int | None) -> int:
    block_bytes = _block_bytes(config, isa, kv_type)
    available_bytes = probe().available_bytes
    if context_tokens is None:
        affordable = int(available_bytes * KV_MEMORY_SHARE) // block_bytes * BLOCK_TOKENS
        context_tokens = min(config.context_length, max(affordable, MIN_CONTEXT_TOKENS))
    num_blocks = -(-context_tokens // BLOCK_TOKENS)
    asked_bytes = num_blocks * block_bytes
    if asked_bytes > available_bytes:
        raise ResourceError(
            f"context_tokens={context_tokens} takes {asked_bytes / 1e9:.1f} GB of memory for keys and values; "
            f"{available_bytes / 1e9:.1f} GB are available. "
            f"Give at most {available_bytes // block_bytes * BLOCK_TOKENS}"
            + ("" if kv_type == "int8" else ", or kv='int8', which takes about half of it")
        )
    return num_blocks
