"""How many rows of prompts a step may read beside answers that are being written, by times measured as it goes.

An answer whose step also reads rows of a prompt has to wait for them. The pacer keeps two measured costs, a step that
only writes answers and a further row of a prompt, and from them bounds what prompts may add to a step.
"""

from __future__ import annotations

import math

# A step with prompts may take this much longer than one without, which leaves room for noise below twice the latency;
# reading a prompt beside one answer then takes 7 / 3 of the time that it takes alone.
PROMPT_SHARE = 0.75
# A new measurement moves its average by this; costs drift slowly, with the length of contexts.
WEIGHT = 0.2
# Outliers say more of the machine than of the model.
MAX_GROWTH = 2.0
# With as many rows of prompts for each answer, a step's time is that of prompts, whatever the answers are taken for.
SURE_RATIO = 8
# However slow, a prompt goes on.
MIN_PROMPT_ROWS = 1


class StepPacer:
    """Averages of measured steps, and the number of prompt rows that follows from them.

    Numbers of answers are counted by the power of two above them. While prompts keep coming there is no step that only
    writes answers, so what such a step would take is then worked out from those that do both.
    """

    def __init__(self) -> None:
        self._answer_ms: dict[int, float] = {}  # measured
        self._worked_out_ms: dict[int, float] = {}
        self._prompt_row_ms: float | None = None

    @property
    def prompt_row_ms(self) -> float | None:
        """Milliseconds that a further row of a prompt costs; None before the first was measured."""
        return self._prompt_row_ms

    def answer_step_ms(self, num_answers: int) -> float | None:
        """Milliseconds of a step that only writes this many answers; None before one like it was measured."""
        known = self._worked_out_ms | self._answer_ms
        if not known or num_answers == 0:
            return None if num_answers else 0.0
        key = num_answers.bit_length()
        return known[min(known, key=lambda each: abs(each - key))]

    def record(self, num_answers: int, num_prompt_rows: int, step_ms: float) -> None:
        """Take up a measured step: its rows that continue answers, its other rows, and its time."""
        key = num_answers.bit_length()
        if num_prompt_rows == 0:
            self._answer_ms[key] = _averaged(self._answer_ms.get(key), step_ms)
            return
        answers_ms = self.answer_step_ms(num_answers)
        if answers_ms is None:
            return
        if num_answers == 0 or key in self._answer_ms or num_prompt_rows > SURE_RATIO * num_answers:
            row_ms = max(step_ms - answers_ms, 0.01 * step_ms) / num_prompt_rows
            self._prompt_row_ms = _averaged(self._prompt_row_ms, row_ms)
        if num_answers and key not in self._answer_ms and self._prompt_row_ms is not None:
            least_ms = max((ms for each, ms in self._answer_ms.items() if each < key), default=0.0)
            rest_ms = max(step_ms - num_prompt_rows * self._prompt_row_ms, least_ms)
            self._worked_out_ms[key] = _averaged(self._worked_out_ms.get(key), rest_ms)

    def doubt(self) -> None:
        """Take the cost of a prompt row for less: it was measured some time ago, and only what is tried is measured.

        To be called when a request is refused by that cost alone, so that a machine that was slow is tried again.
        """
        if self._prompt_row_ms is not None:
            self._prompt_row_ms *= 1 - WEIGHT

    def prompt_rows(self, num_answers: int, num_prompts: int, max_rows: int) -> int:
        """Most rows of prompts for a step that continues `num_answers` while `num_prompts` are not read yet.

        With no answer to hold up there is no bound but `max_rows`. The more prompts wait for each answer that is
        written, the more of the step is theirs: each answer loses a little, each prompt gains its whole wait.
        """
        answers_ms = self.answer_step_ms(num_answers)
        if num_answers == 0 or answers_ms is None or self._prompt_row_ms is None:
            return max_rows
        share = PROMPT_SHARE * max(1.0, num_prompts**2 / num_answers)
        rows = share * answers_ms / self._prompt_row_ms
        return max_rows if rows >= max_rows else max(MIN_PROMPT_ROWS, math.floor(rows))

    def ttft_ms(self, num_rows_ahead: int, num_answers: int) -> float | None:
        """Predicted milliseconds until a prompt is read whose last row has this many before it; None if unmeasured."""
        if self._prompt_row_ms is None:
            return None
        read_ms = num_rows_ahead * self._prompt_row_ms
        return read_ms if num_answers == 0 else read_ms * (1 + 1 / PROMPT_SHARE)


def _averaged(average: float | None, value: float) -> float:
    """The moving average with one more value, of which an outlier counts as the largest usual growth."""
    if average is None:
        return value
    return average + WEIGHT * (min(value, MAX_GROWTH * average) - average)
