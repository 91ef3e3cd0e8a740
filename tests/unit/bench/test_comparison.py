"""Rows, rounds, ratios and tables of a comparison; no engine runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.compare import COLUMNS, Case, case_json, samplers_of, table_of
from bench.comparison_table import Ratio, ratios, render
from bench.engines import Command, Row
from bench.models import label_of, make_once
from bench.rounds import Figure, duration_text, measure, seconds_left
from bench.timing import PeerError, Timing


def figure(value: float) -> Figure:
    return Figure(value, value - 1, value + 1, 3)


def test_rows_are_read_and_written_alike() -> None:
    for text in ("subsecond", "subsecond:int8", "llama.cpp", "llama.cpp:q8_0", "openvino:int4"):
        assert str(Row.parse(text)) == text
    assert Row.parse("openvino") == Row("openvino", "int4")
    assert Row.parse("subsecond").weights is None


@pytest.mark.parametrize("text", ["", "openvini", "openvino:int3", "subsecond:Q4_0"])
def test_unknown_rows_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"engines are|weights of"):
        Row.parse(text)


def test_rounds_interleave_and_failures_stop() -> None:
    order = []
    lines: list[str] = []

    def sample(name: str, values: list[float]) -> float:
        order.append(name)
        if not values:
            raise PeerError("program ended with 1: Traceback\n  here\nout of memory\n")
        return values.pop(0)

    values = {"a": [1.0, 3.0, 2.0], "b": [5.0]}
    samplers = {name: (lambda name=name: sample(name, values[name])) for name in values}
    figures, failures = measure(samplers, 3, lines.append)
    assert order == ["a", "b", "a", "b", "a"]
    assert figures == {"a": Figure(2.0, 1.0, 3.0, 3)}
    assert failures["b"].startswith("program ended with 1: Traceback")
    assert len(lines) == 5
    assert "round 2/3  b  failed: out of memory" in lines[3]
    assert lines[-1].endswith("0 s left")


def test_time_left_counts_unknown_samples_as_the_mean() -> None:
    assert seconds_left(["b", "c", "a", "b", "c"], {"a": 10.0, "b": 20.0}) == 20 + 15 + 10 + 20 + 15
    assert seconds_left(["a"], {}) == 0


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "7 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_ratio_is_to_the_best_peer_of_each_column() -> None:
    ours = {"prefill512": figure(100), "decode1": figure(30), "decode8": figure(7)}
    peers = {
        "llama.cpp": {"prefill512": figure(20), "decode1": figure(20)},
        "openvino": {"prefill512": figure(50), "decode1": figure(10)},
    }
    assert ratios(ours, peers) == {"prefill512": Ratio(2.0, "openvino"), "decode1": Ratio(1.5, "llama.cpp")}
    assert ratios(ours, {}) == {}


def test_table_is_aligned_and_shows_what_is_missing() -> None:
    rows = {"subsecond": {"decode1": figure(123.4)}, "vllm:bf16": {}}
    text = render(["decode1"], rows, {"subsecond": {"decode1": Ratio(1.234, "x")}}, {"subsecond": 5_000_000})
    assert text.splitlines() == [
        "tokens/s               decode1        peak memory",
        "subsecond              123 (122-124)  5 MB",
        "vllm:bf16              -              -",
        "subsecond / best peer  1.23x x",
    ]


def test_what_cannot_run_is_told_below_the_table() -> None:
    missing = Case(Row("openvino", "int4"), failures={"": "not installed"})
    failed = Case(Row("llama.cpp", None), failures={"decode32": "Traceback\nout of memory"})
    lines = table_of([missing, failed], ["decode32"]).splitlines()
    assert lines[-2:] == ["openvino:int4: not installed", "llama.cpp decode32: out of memory"]


def test_samples_of_a_column_follow_each_other() -> None:
    command = Command(("program",))
    rows = [Row("subsecond", None), Row("vllm", "bf16"), Row("openvino", "int4")]
    cases = [Case(row, Path("model"), command) for row in rows[:2]] + [Case(rows[2], failures={"": "not installed"})]
    columns = {name: COLUMNS[name] for name in ("prefill512", "decode8")}
    keys = list(samplers_of({"model": cases}, columns, threads=2))
    assert keys == [
        ("model", "prefill512", "subsecond"),
        ("model", "prefill512", "vllm:bf16"),
        ("model", "decode8", "subsecond"),
    ]


def test_json_says_how_to_repeat_a_figure() -> None:
    command = Command(("python", "-m", "bench.generation"), ("--weights", "int8"), {"SUBSECOND_ISA": "avx2"})
    case = Case(Row("subsecond", "int8"), Path("m.gguf"), command, figures={"decode8": figure(3)})
    case.timings += [Timing(1, 1, (1,), 1, 2, 1, memory, "1.0", "avx2 kernels") for memory in (7, 9)]
    found = case_json(case, {"decode8": COLUMNS["decode8"]}, threads=2)
    assert found["commands"] == {
        "decode8": "SUBSECOND_ISA=avx2 python -m bench.generation m.gguf 128 33 2 8 --weights int8"
    }
    assert (found["version"], found["peak_rss_bytes"]) == ("1.0", 9)


def test_models_are_called_by_their_short_names() -> None:
    names = ("llama-3.2-1b", "smollm2-135m", "some/folder/m-q4_0.gguf", "m.gguf")
    assert [label_of(name) for name in names] == ["llama-3.2-1b", "smollm2-135m", "m-q4_0", "m"]


def test_files_are_made_once_for_one_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "source", tmp_path / "made" / "target"
    source.write_text("a")
    program = "import pathlib, sys; pathlib.Path(sys.argv[2]).write_text(pathlib.Path(sys.argv[1]).read_text() + 'b')"
    command = [sys.executable, "-c", program, str(source)]
    assert make_once(target, source, command).read_text() == "ab"
    assert make_once(target, source, command) == target
    assert capsys.readouterr().err.count("making") == 1
    source.write_text("other")
    assert make_once(target, source, command).read_text() == "otherb"


def test_failed_making_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(PeerError, match="no such luck"):
        make_once(target, None, [sys.executable, "-c", "import sys; sys.exit('no such luck')"])
    assert not target.exists()
