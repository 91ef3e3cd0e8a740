"""What an evaluation can be told: sizes of windows and answers, declared once; evaluates nothing."""

from __future__ import annotations

from dataclasses import dataclass

from subsecond.core.errors import InputError
from subsecond.core.settings import setting, validate


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """How texts are cut into windows, and how long free answers may be."""

    windows: int | None = setting(
        None, "windows of each text; without it all that the text has, at most 40", minimum=1, maximum=100_000
    )
    window_tokens: int = setting(512, "tokens of a window", minimum=2, maximum=2**20)
    stride: int | None = setting(
        None,
        "tokens from the begin of a window to the next; less than a window gives overlapping ones, of which only the "
        "last tokens count; without it windows follow one another",
        minimum=1,
        maximum=2**20,
    )
    answer_tokens: int = setting(48, "most tokens of a free answer", minimum=1, maximum=4096)

    def __post_init__(self) -> None:
        validate(self)
        if self.stride is not None and self.stride > self.window_tokens:
            raise InputError(
                f"a stride of {self.stride} would leave out tokens between windows of {self.window_tokens}; give at "
                f"most {self.window_tokens}"
            )
