"""The stage that removes groups of attention heads, as many in each layer, so that every engine loads the result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from subsecond.compress.correction import OriginalStream, input_and_target, original_stream
from subsecond.compress.importance import Indices, select_best
from subsecond.compress.plain_weights import as_half, keep_rows, widened
from subsecond.compress.prune_heads import HeadShape, group_activity, group_sensitivity
from subsecond.compress.refit import refit_columns
from subsecond.compress.segment_run import SegmentResult, as_stored, run_segments
from subsecond.compress.stage import Decision, StageJob, StageResult
from subsecond.compress.walk import Visit
from subsecond.core.errors import InputError, UnsupportedError
from subsecond.core.settings import setting, validate

METHODS = ("sensitivity", "activation")
_OUTPUT = ".attn_output.weight"


@dataclass(frozen=True, slots=True)
class Settings:
    """Which groups of heads stay; a group is a key/value head with the query heads that read it."""

    keep: float = setting(0.75, "part of the key/value heads that stay", minimum=0.05, maximum=0.99)
    method: str = setting("sensitivity", "how groups are ranked", choices=METHODS)
    refit: bool = setting(True, "fit the output projection to the heads that stay")
    correction: float = setting(
        0.5, "part of what earlier parts have lost that the output projection gives back", minimum=0.0, maximum=1.0
    )
    damping: float = setting(0.01, "of the fit, of the mean square input", minimum=0.0, is_minimum_excluded=True)

    def __post_init__(self) -> None:
        validate(self)


def needs_calibration(settings: Settings) -> bool:  # noqa: ARG001
    """Whether the stage learns from text: always."""
    return True


def run(job: StageJob, settings: Settings) -> StageResult:
    """Write the model with fewer heads.

    Raises:
        InputError: rounding would leave all groups.
        UnsupportedError: a norm goes across heads.
    """
    config = job.checkpoint.config
    shape = HeadShape(config.num_heads, config.num_kv_heads, config.head_dim)
    num_groups = max(1, int(settings.keep * shape.num_kv_heads + 0.5))
    if num_groups == shape.num_kv_heads:
        raise InputError(
            f"{settings.keep:.0%} of {num_groups} key/value heads, rounded, is all of them; keep less, or leave the "
            "stage out"
        )
    smaller = shape.with_groups(num_groups)
    job.sink.config = replace(job.sink.config, num_heads=smaller.num_heads, num_kv_heads=smaller.num_kv_heads)
    job.sink.readings.clear()
    original = original_stream(job, settings.correction if settings.refit else 0.0)
    decisions = run_segments(job, partial(prune, job, settings, shape, num_groups, original))
    return StageResult(tuple(decisions))


def prune(
    job: StageJob,
    settings: Settings,
    shape: HeadShape,
    num_groups: int,
    original: OriginalStream | None,
    visit: Visit,
) -> SegmentResult:
    """Leave `num_groups` groups in the attention part of a segment; other segments stay as they are."""
    output = next((name for name in visit.segment.weights if name.endswith(_OUTPUT)), None)
    if output is None:
        return SegmentResult({})
    blk = output.removesuffix(_OUTPUT)
    statistics, weight = input_and_target(visit, output, original, settings.correction, settings.damping)
    if settings.method == "activation":
        scores = group_activity(statistics, shape)
    else:
        scores = group_sensitivity(weight, statistics.gram, shape, settings.damping)
    groups = select_best(scores, num_groups)
    columns = shape.query_rows(groups)
    bias = visit.weights.get(f"{blk}.attn_output.bias")
    refit = refit_columns(
        weight,
        statistics.gram,
        columns,
        bias=None if bias is None else bias.numpy(),
        mean=statistics.mean,
        damping=settings.damping,
    )
    stored = as_half(refit.weight if settings.refit else weight[:, columns])
    tensors = {output: stored}
    for name in visit.segment.weights:
        rows = _rows(name, blk, visit, shape, groups)
        if rows is not None:
            tensors[name] = keep_rows(as_stored(job, name), rows)
    if refit.bias is not None and settings.refit:
        tensors[f"{blk}.attn_output.bias"] = as_half(refit.bias)
        visit.weights[f"{blk}.attn_output.bias"] = torch.from_numpy(refit.bias)
    visit.weights[output] = torch.from_numpy(widened(stored.dequantize(), columns, weight.shape[1]))
    figures = {
        "relative_error": float(np.sqrt(refit.error if settings.refit else refit.error_cut)),
        "relative_error_without_fit": float(np.sqrt(refit.error_cut)),
    }
    gone = [group for group in range(shape.num_kv_heads) if group not in groups]
    what = f"key/value heads {', '.join(map(str, gone))} removed with their query heads"
    why = f"least {settings.method} on the calibration text"
    return SegmentResult(tensors, (Decision(visit.segment.name, what, why, figures),))


def _rows(name: str, blk: str, visit: Visit, shape: HeadShape, groups: Indices) -> Indices | None:
    """Rows of a weight that stay, None for one that has nothing to do with heads."""
    kind = name.removeprefix(f"{blk}.").rpartition(".")[0]
    queries, keys = shape.query_rows(groups), shape.key_rows(groups)
    if kind == "attn_q":
        return queries
    if kind in ("attn_k", "attn_v"):
        return keys
    if kind == "attn_qkv":
        num_queries, num_keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        return np.concatenate((queries, num_queries + keys, num_queries + num_keys + keys))
    if kind in ("attn_q_norm", "attn_k_norm") and len(visit.weights[name]) != shape.head_dim:
        raise UnsupportedError(
            f"{name} normalizes all heads together, so that none can leave without changing the others; leave the "
            "stage out"
        )
    return None
