"""How many rows of prompts go beside answers, by the times that were measured."""

from __future__ import annotations

from subsecond.engine.pacing import MIN_PROMPT_ROWS, StepPacer


def measured(*, answer_ms: float = 10.0, row_ms: float = 0.5, num_answers: int = 8) -> StepPacer:
    pacer = StepPacer()
    for _ in range(30):
        pacer.record(num_answers, 0, answer_ms)
        pacer.record(num_answers, 16, answer_ms + 16 * row_ms)
    return pacer


def test_prompts_take_three_quarters_of_what_answers_take() -> None:
    pacer = measured()
    assert pacer.prompt_row_ms is not None
    assert abs(pacer.prompt_row_ms - 0.5) < 1e-9
    assert pacer.prompt_rows(8, 1, 512) == 15


def test_nothing_bounds_prompts_when_no_answer_waits_or_nothing_is_known() -> None:
    assert measured().prompt_rows(0, 1, 512) == 512
    assert StepPacer().prompt_rows(8, 1, 512) == 512
    only_answers = StepPacer()
    only_answers.record(8, 0, 10.0)
    assert only_answers.prompt_rows(8, 1, 512) == 512


def test_many_waiting_prompts_get_more_of_the_step() -> None:
    pacer = measured()
    rows = [pacer.prompt_rows(8, num_prompts, 512) for num_prompts in (1, 2, 4, 8, 24)]
    assert rows[0] == rows[1] < rows[2] < rows[3] < rows[4] == 512


def test_a_prompt_always_goes_on() -> None:
    assert measured(answer_ms=1.0, row_ms=100.0).prompt_rows(8, 1, 512) == MIN_PROMPT_ROWS


def test_one_outlier_does_not_stop_prompts() -> None:
    pacer = measured()
    pacer.record(8, 16, 5000.0)
    assert pacer.prompt_rows(8, 1, 512) >= 11
    for _ in range(40):
        pacer.record(8, 16, 10.0 + 16 * 5.0)  # the machine has become slower
    assert pacer.prompt_rows(8, 1, 512) == MIN_PROMPT_ROWS


def test_the_nearest_number_of_answers_stands_in_for_one_not_measured() -> None:
    pacer = StepPacer()
    pacer.record(1, 0, 10.0)
    pacer.record(16, 0, 40.0)
    assert pacer.answer_step_ms(2) == 10.0
    assert pacer.answer_step_ms(31) == 40.0
    assert pacer.answer_step_ms(0) == 0.0


def test_the_first_token_is_predicted_from_the_rows_before_it() -> None:
    pacer = measured()
    assert StepPacer().ttft_ms(100, 0) is None
    alone, beside = pacer.ttft_ms(100, 0), pacer.ttft_ms(100, 8)
    assert alone is not None
    assert beside is not None
    assert abs(alone - 50.0) < 1e-6
    assert abs(beside - 50.0 * 7 / 3) < 1e-6


def test_answers_that_never_have_a_step_of_their_own_are_worked_out() -> None:
    """As in a burst: prompts are always waiting while answers become more."""
    pacer = StepPacer()
    pacer.record(0, 512, 512 * 0.5)
    pacer.record(1, 0, 6.0)
    rows = []
    for num_answers in range(4, 33):
        for _ in range(3):
            rows.append(pacer.prompt_rows(num_answers, 2, 512))
            pacer.record(num_answers, rows[-1], 5.0 + num_answers + 0.5 * rows[-1])
    assert pacer.prompt_row_ms is not None
    assert 0.4 < pacer.prompt_row_ms < 0.6
    assert 0.6 * 0.75 * 37 / 0.5 < rows[-1] < 1.4 * 0.75 * 37 / 0.5
