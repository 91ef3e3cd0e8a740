"""Work that was ended finds what it had done, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from subsecond.measure.journal import Journal, journal_path, resumed


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path))
    return tmp_path


def test_results_are_found_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a" / "work.jsonl")
    journal.put("first", {"x": [1.5, None]})
    journal.put("second", "text")
    again = Journal(journal.path)
    assert again.keys() == ["first", "second"] and again["first"] == {"x": [1.5, None]}
    assert "second" in again and "third" not in again and len(again) == 2


@pytest.mark.parametrize("rest", [b'["third", 3', b'["third", 3]', b"\xff\xfe\n", b'{"third": 3}\n', b'["third"]\n'])
def test_a_line_that_is_not_whole_counts_as_not_written(tmp_path: Path, rest: bytes) -> None:
    journal = Journal(tmp_path / "work.jsonl")
    journal.put("first", 1)
    journal.path.write_bytes(journal.path.read_bytes() + rest)
    again = Journal(journal.path)
    assert again.keys() == ["first"]
    again.put("second", 2)
    assert Journal(journal.path).keys() == ["first", "second"]


def test_numbers_that_are_not_json_are_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "work.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.put("first", float("nan"))
    assert len(Journal(journal.path)) == 0


def test_a_block_that_fails_leaves_its_journal_and_one_that_ends_does_not() -> None:
    inputs = {"model": "a", "windows": 4}
    with pytest.raises(KeyboardInterrupt), resumed("eval", inputs) as journal:
        journal.put("0", 1)
        raise KeyboardInterrupt
    with resumed("eval", {**inputs, "windows": 5}) as other:
        assert len(other) == 0
    with resumed("eval", inputs) as journal:
        assert journal["0"] == 1
    assert not journal_path("eval", inputs).exists()


def test_what_was_done_can_be_forgotten() -> None:
    with pytest.raises(KeyboardInterrupt), resumed("eval", {}) as journal:
        journal.put("0", 1)
        raise KeyboardInterrupt
    with resumed("eval", {}, is_fresh=True) as journal:
        assert len(journal) == 0
