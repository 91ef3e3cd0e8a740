"""What a stage of a recipe is given and what it gives back; does nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from subsecond.backends.batch import Int32
from subsecond.models.checkpoint import Checkpoint
from subsecond.models.config import ModelConfig
from subsecond.models.tokenizer import Tokenizer
from subsecond.models.weights import StoredTensor

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how many steps of it are done, and of how many."""


def in_parts(progress: Progress, number: int, count: int) -> Progress:
    """What part `number` of `count` that take about as long tells, as steps of all of them."""

    def tell(what: str, num_done: int, num_all: int) -> None:
        progress(what, number * num_all + num_done, count * num_all)

    return tell


class Sink(Protocol):
    """Where the new checkpoint goes, weight by weight, under the names of the graph.

    config    of the new model; that of the old one until it is set
    readings  how weights are to be executed, by name and "default"; those of the old one until they are changed
    """

    config: ModelConfig
    readings: dict[str, str]

    def put(self, name: str, tensor: StoredTensor) -> None:
        """Write one weight."""

    def put_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Write another tokenizer in place of the old model's."""


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Tokens that methods learn from, int32 [windows, tokens], and others to judge by; `source` says whose text."""

    windows: Int32
    held_out: Int32
    source: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What was done to a part of the model, and why.

    part     name of the weight, the segment ("blk.3.ffn") or "model"
    what     in a few words: "Q4_0 by GPTQ", "removed"
    why      the figure or the rule that decided
    figures  measured, by name: "relative_error", "bits_per_weight", ...
    """

    part: str
    what: str
    why: str
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Decision:
        """The decision that `to_json` gave."""
        return cls(**content)


@dataclass(frozen=True, slots=True)
class Rejection:
    """An option that was looked at and not taken, with the reason."""

    option: str
    reason: str


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage did, for the report."""

    decisions: tuple[Decision, ...]
    rejections: tuple[Rejection, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> StageResult:
        """The result that `to_json` gave."""
        decisions = tuple(Decision.from_json(each) for each in content["decisions"])
        return cls(decisions, tuple(Rejection(**each) for each in content["rejections"]))


@dataclass(frozen=True, slots=True)
class StageJob:
    """One run of a stage.

    folder  of this very stage of this very work: what a killed run left there may be used
    """

    checkpoint: Checkpoint
    sink: Sink
    calibration: Calibration
    folder: Path
    progress: Progress
