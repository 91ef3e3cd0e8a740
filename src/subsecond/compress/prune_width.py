"""Removes neurons of a feed-forward part and refits what reads them; does not choose which."""

from __future__ import annotations

from dataclasses import dataclass, replace

from subsecond.compress.gram_matrix import DAMPING
from subsecond.compress.importance import Indices
from subsecond.compress.refit import Refit, refit_columns
from subsecond.compress.statistics import Floats, InputStatistics
from subsecond.core.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class FeedForward:
    """down @ (activation(gate @ x) * (up @ x)); gate and up [ff, width], down [width, ff].

    `gate` is None where there is no gate. Biases are None where the model has none.
    """

    gate: Floats | None
    up: Floats
    down: Floats
    gate_bias: Floats | None = None
    up_bias: Floats | None = None
    down_bias: Floats | None = None

    def __post_init__(self) -> None:
        ff_width = len(self.up)
        if self.down.shape[1] != ff_width or (self.gate is not None and self.gate.shape != self.up.shape):
            raise InputError(
                f"up {self.up.shape}, gate {None if self.gate is None else self.gate.shape} and down {self.down.shape} "
                "are not of one feed-forward part"
            )

    @property
    def num_neurons(self) -> int:
        """Width between up and down."""
        return len(self.up)


def keep_neurons(
    part: FeedForward,
    kept: Indices,
    statistics: InputStatistics,
    *,
    has_refit: bool = True,
    damping: float = DAMPING,
) -> tuple[FeedForward, Refit]:
    """The part with the neurons `kept` (ascending) alone, and how far its output moves.

    `statistics` are of down's input. With `has_refit` down becomes what `refit_columns` says, otherwise its columns are
    just cut out. InputError where shapes do not fit or numbers are not finite.
    """
    refit = refit_columns(part.down, statistics.gram, kept, bias=part.down_bias, mean=statistics.mean, damping=damping)
    gate, up = (None if part.gate is None else part.gate[kept]), part.up[kept]
    biases = {name: _cut(getattr(part, name), kept) for name in ("gate_bias", "up_bias")}
    cut = replace(part, gate=gate, up=up, down=part.down[:, kept], **biases)
    if has_refit:
        cut = replace(cut, down=refit.weight, down_bias=refit.bias)
    return cut, refit


def _cut(bias: Floats | None, kept: Indices) -> Floats | None:
    return None if bias is None else bias[kept]
