"""Removes groups of attention heads (a key/value head with its query heads) and refits the output projection."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from subsecond.compress.gram_matrix import DAMPING, checked_gram, checked_weight, inverse
from subsecond.compress.importance import Indices, Scores
from subsecond.compress.refit import Refit, refit_columns
from subsecond.compress.statistics import Floats, InputStatistics
from subsecond.core.errors import InputError


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Query heads, key/value heads that share them out evenly, and channels of each."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads or self.head_dim < 1:
            raise InputError(
                f"{self.num_heads} heads cannot share {self.num_kv_heads} key/value heads of {self.head_dim} channels"
            )

    @property
    def group_width(self) -> int:
        """Channels of the output projection's input that one group makes."""
        return self.num_heads // self.num_kv_heads * self.head_dim

    def with_groups(self, num_groups: int) -> HeadShape:
        """The same heads with fewer groups; InputError unless at least one stays and at least one goes."""
        if not 1 <= num_groups < self.num_kv_heads:
            raise InputError(
                f"{num_groups} of {self.num_kv_heads} key/value heads were to stay; allowed are 1 to "
                f"{self.num_kv_heads - 1}"
            )
        return replace(self, num_heads=self.num_heads // self.num_kv_heads * num_groups, num_kv_heads=num_groups)

    def query_rows(self, groups: Indices) -> Indices:
        """Rows of the query projection, and columns of the output projection, of the groups."""
        return _channels(groups, self.group_width)

    def key_rows(self, groups: Indices) -> Indices:
        """Rows of the key and value projections of the groups."""
        return _channels(groups, self.head_dim)


@dataclass(frozen=True, slots=True, eq=False)
class AttentionWeights:
    """Projections of a layer: query [heads * d, width], key and value [kv_heads * d, width], output [width, heads * d].

    Biases are None where the model has none.
    """

    query: Floats
    key: Floats
    value: Floats
    output: Floats
    query_bias: Floats | None = None
    key_bias: Floats | None = None
    value_bias: Floats | None = None
    output_bias: Floats | None = None


def group_activity(statistics: InputStatistics, shape: HeadShape) -> Scores:
    """sqrt(sum over a group's channels of E[x^2]) of the output projection's input, float64 [groups].

    Muralidharan et al. 2024 (Minitron), arXiv 2407.14679, section 2.2, for whole groups of grouped-query attention.
    """
    _check_inputs(len(statistics.mean_square), shape)
    energies = statistics.mean_square.astype(np.float64).reshape(shape.num_kv_heads, shape.group_width)
    found: Scores = np.sqrt(energies.sum(axis=1))
    if not np.isfinite(found).all():
        raise InputError("activity of heads is NaN or infinite; the model overflows on the calibration text")
    return found


def group_sensitivity(output: Floats, gram: Floats | None, shape: HeadShape, damping: float = DAMPING) -> Scores:
    """What the output projection's squared error grows by without a group, after the best refit, float64 [groups].

    trace(W_g ([G^-1]_gg)^-1 W_g^T) for the group's columns W_g: Kurtic et al. 2023 (ZipLM), arXiv 2302.04089,
    equation 3.
    """
    W = checked_weight(output)
    _check_inputs(W.shape[1], shape)
    H_inverse = inverse(checked_gram(gram, W.shape[1]), damping)
    found = np.empty(shape.num_kv_heads, np.float64)
    for group in range(shape.num_kv_heads):
        columns = slice(group * shape.group_width, (group + 1) * shape.group_width)
        block, W_g = H_inverse[columns, columns], W[:, columns]
        found[group] = float((W_g.T * (block.inverse() @ W_g.T)).sum())
    return found


def keep_groups(
    part: AttentionWeights,
    shape: HeadShape,
    groups: Indices,
    statistics: InputStatistics,
    *,
    has_refit: bool = True,
    damping: float = DAMPING,
) -> tuple[AttentionWeights, Refit]:
    """The part with the key/value heads `groups` (ascending) and their query heads alone, and how far it moves.

    `statistics` are of the output projection's input. InputError where shapes do not fit or numbers are not finite.
    """
    shape.with_groups(len(groups))
    _check_inputs(part.output.shape[1], shape)
    if len(part.query) != shape.num_heads * shape.head_dim or len(part.key) != shape.num_kv_heads * shape.head_dim:
        raise InputError(f"query {part.query.shape} and key {part.key.shape} do not have the heads of {shape}")
    rows, kv_rows = shape.query_rows(groups), shape.key_rows(groups)
    refit = refit_columns(
        part.output, statistics.gram, rows, bias=part.output_bias, mean=statistics.mean, damping=damping
    )
    cut = AttentionWeights(
        part.query[rows],
        part.key[kv_rows],
        part.value[kv_rows],
        refit.weight if has_refit else part.output[:, rows],
        None if part.query_bias is None else part.query_bias[rows],
        None if part.key_bias is None else part.key_bias[kv_rows],
        None if part.value_bias is None else part.value_bias[kv_rows],
        refit.bias if has_refit else part.output_bias,
    )
    return cut, refit


def _channels(groups: Indices, width: int) -> Indices:
    found: Indices = (groups[:, None] * width + np.arange(width)).reshape(-1).astype(np.int64)
    return found


def _check_inputs(num_inputs: int, shape: HeadShape) -> None:
    if num_inputs != shape.num_heads * shape.head_dim:
        raise InputError(
            f"the output projection has {num_inputs} inputs; {shape.num_heads} heads of {shape.head_dim} channels make "
            f"{shape.num_heads * shape.head_dim}"
        )
