"""Windows that overlap: what each reads, and that every token counts once."""

from __future__ import annotations

import numpy as np
import pytest

from subsecond.core.errors import InputError
from subsecond.measure.windows import sliding_windows, windows_of_tokens

IDS = list(range(100, 123))


def scored(window_tokens: int, stride: int | None, ids: list[int] = IDS) -> list[int]:
    windows = sliding_windows(ids, window_tokens, stride)
    return [int(token) for window in windows for token in window.token_ids[window.first_scored :]]


@pytest.mark.parametrize(("window_tokens", "stride"), [(8, 3), (8, 1), (5, 4), (22, 2), (23, 23), (40, 7)])
def test_with_overlap_every_token_but_the_first_counts_once(window_tokens: int, stride: int) -> None:
    assert scored(window_tokens, stride) == IDS[1:]


def test_without_overlap_the_first_token_of_each_window_does_not_count() -> None:
    assert scored(8, None) == [*IDS[1:8], *IDS[9:16], *IDS[17:23]]
    assert scored(8, 8) == scored(8, None)


def test_later_windows_score_their_last_tokens_with_all_context_before_them() -> None:
    windows = sliding_windows(IDS, 8, 3)
    assert [window.token_ids[0] for window in windows] == [100, 103, 106, 109, 112, 115]
    assert [window.first_scored for window in windows] == [1, 5, 5, 5, 5, 5]
    assert [len(window.token_ids) for window in windows] == [8] * 6
    assert [window.num_scored for window in windows] == [7, 3, 3, 3, 3, 3]


def test_windows_without_overlap_are_those_of_the_plain_cut() -> None:
    np.testing.assert_array_equal(
        [window.token_ids for window in sliding_windows(IDS, 5, None, 4)], windows_of_tokens(IDS, 4, 5)
    )


def test_the_begin_of_text_takes_the_place_of_the_first_token_and_changes_no_target() -> None:
    plain, begun = sliding_windows(IDS, 8, 4), sliding_windows(IDS, 8, 4, bos_id=1)
    for left, right in zip(plain, begun, strict=True):
        assert right.token_ids[0] == 1
        np.testing.assert_array_equal(left.token_ids[1:], right.token_ids[1:])
        assert left.first_scored == right.first_scored >= 1
    assert IDS[0] == 100  # the text itself is as it was


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IDS, 8, 9), "stride 9 cannot be made"),
        ((IDS, 8, 0), "stride 0 cannot be made"),
        ((IDS, 1, None), "windows of 1 tokens"),
        ((IDS, 8, 4, 5), "23 tokens, but 5 windows of 8 with stride 4 need 24; ask for at most 4"),
        (([7], 8, None), "the text has 1 tokens; at least 2"),
    ],
)
def test_what_cannot_be_cut_is_refused(arguments: tuple[list[int], int, int | None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sliding_windows(*arguments)
