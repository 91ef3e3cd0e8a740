"""`subsecond explain` as people and scripts see it, on a model of two layers with random weights."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from subsecond.backends.native import measuring
from subsecond.backends.probe_store import save_probe
from subsecond.cli import main as cli
from subsecond.measure import explanation, layers, time_budget
from subsecond.measure.journal import Journal
from tests.fuzz.gguf_inputs import valid_model
from tests.unit.backends.made_up_probe import PROBE

Explain = Callable[..., dict[str, Any]]
SMALL = ("--windows", "2", "--window-tokens", "40", "--max-tokens", "6", "--prompt", "hello the world")
KEYS = {
    "machine", "model", "reference", "variant", "layers", "flips", "num_flips", "num_scored_tokens", "answers",
    "attribution", "time", "findings",
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SUBSECOND_ISA", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("m.gguf").write_bytes(valid_model(0))
    return tmp_path / "home"


@pytest.fixture
def explain(capsys: pytest.CaptureFixture[str]) -> Explain:
    def run(*arguments: str) -> dict[str, Any]:
        assert cli.main(["explain", "m.gguf", *SMALL, "--json", *arguments]) == 0
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    return run


def test_the_whole_report(explain: Explain, home: Path) -> None:
    Path("prompts.jsonl").write_text('one\n\n{"prompt": "two {x}", "more": 1}\n{not JSON\n')
    report = explain("--weights", "int4", "--prompts", "prompts.jsonl", "--html", "report.html")
    assert set(report) == KEYS
    assert report["model"] == report["reference"] == "m.gguf" and report["variant"].startswith("int4/")
    parts = report["layers"]
    assert [layer["name"] for layer in parts] == [
        "embedding", "blk.0.attn", "blk.0.ffn", "blk.1.attn", "blk.1.ffn",
    ]  # fmt: skip
    assert set(parts[0]) == {"name", "relative_error", "cosine_distance", "added_error"}
    assert parts[0]["relative_error"] < 1e-3 < parts[-1]["relative_error"]
    assert sum(layer["added_error"] for layer in parts) == pytest.approx(parts[-1]["relative_error"])
    assert report["num_scored_tokens"] == 78 and 0 < report["num_flips"] <= 78
    sureness = [flip["sureness"] for flip in report["flips"]]
    assert sureness == sorted(sureness, reverse=True) and len(sureness) == min(report["num_flips"], 20)
    for flip in report["flips"]:
        assert flip["reference"][0]["token"] != flip["candidate"][0]["token"]
        assert len(flip["reference"]) == len(flip["candidate"]) == 3
    assert [answer["prompt"] for answer in report["answers"]] == ["one", "two {x}", "{not JSON"]
    check_attribution(report["attribution"])
    check_time(report["time"])
    page = Path("report.html").read_text()
    assert "Where the damage arises" in page and "<script" not in page and "blk.1.ffn" in page
    assert not list((home / "unfinished").iterdir())


def check_attribution(found: dict[str, Any]) -> None:
    texts = [token["text"] for token in found["tokens"]]
    assert "hello the world" in "".join(texts)
    assert any(token["gradient_x_input"] for token in found["tokens"])
    assert len(found["occluded"]) == 12
    assert all(item["text"] == texts[item["place"]] for item in found["occluded"])
    assert any(item["served"] for item in found["occluded"])
    assert -1 <= found["rank_correlation"] <= 1 and 0 <= found["top_overlap"] <= 1
    assert found["neutral_token"] == " "


def check_time(found: dict[str, Any]) -> None:
    parts = ("tokenize", "queue", "prefill", "decode", "sample", "detokenize", "other")
    assert found["num_new_tokens"] == 6
    assert all(found[f"{part}_ms"] >= 0 for part in parts)
    assert found["prefill_ms"] > 0 and found["decode_ms"] > 0 and found["sample_ms"] > 0
    assert sum(found[f"{part}_ms"] for part in parts) == pytest.approx(found["total_ms"], rel=0.05)
    assert found["what_if"] == [] and "subsecond doctor --measure" in found["what_if_error"]


def test_faithful_weights_do_little_damage(explain: Explain) -> None:
    report = explain("--only", "layers", "--isa", "scalar")
    assert all(layer["relative_error"] < 0.01 for layer in report["layers"])
    assert report["findings"] == []
    assert report["flips"] is report["attribution"] is report["time"] is None


def test_another_model_as_reference_shows_damage(explain: Explain) -> None:
    Path("other.gguf").write_bytes(valid_model(4))
    report = explain("--only", "layers,flips", "--reference", "other.gguf")
    assert report["reference"] == "other.gguf"
    assert report["layers"][0]["relative_error"] > 0.5
    assert report["num_flips"] > 39


def test_what_if_comes_from_the_stored_probe(explain: Explain) -> None:
    save_probe(replace(PROBE, fingerprint=measuring.fingerprint(num_threads=2)))
    found = explain("--only", "time", "--num-threads", "2", "--max-tokens", "4", "--prompt", "hi")["time"]
    assert found["what_if_error"] is None
    guesses = {guess["change"]: guess for guess in found["what_if"]}
    now = guesses["as it is"]
    assert now["total_ms"] == pytest.approx(now["ttft_ms"] + 3 * now["tpot_ms"])
    assert guesses["1 thread"]["total_ms"] > now["total_ms"] > guesses["4 threads"]["total_ms"]
    scaled = {change for change, guess in guesses.items() if guess["is_scaled"]}
    assert scaled == {"4 threads", "8 threads"}
    assert {"stored weights", "int8 weights", "int4 weights"} <= set(guesses)
    assert guesses["stored weights"]["total_ms"] == pytest.approx(now["total_ms"])
    prompt = found["num_prompt_tokens"]
    longer = guesses[f"a prompt of {2 * prompt} tokens (x2)"]
    assert longer["ttft_ms"] > now["ttft_ms"]


def test_a_report_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "m.gguf", *SMALL, "--weights", "int4"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "Divergence of the hidden state",
        "Flips: ",
        "same evidence: rank",
        "Time of one request",
        "what if: ",
    ):
        assert text in printed


def test_what_was_done_is_not_done_again(
    explain: Explain, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = explain("--only", "layers,flips")
    put, done, again = Journal.put, list[str](), list[str]()

    def put_until(self: Journal, key: str, value: Any) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(key)
        put(self, key, value)

    monkeypatch.setattr(Journal, "put", put_until)
    assert cli.main(["explain", "m.gguf", *SMALL, "--json", "--only", "layers,flips"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "Interrupted"
    assert done == ["layers 0", "layers 1", "flips 0"] and len(list((home / "unfinished").iterdir())) == 1

    def put_noted(self: Journal, key: str, value: Any) -> None:
        again.append(key)
        put(self, key, value)

    monkeypatch.setattr(Journal, "put", put_noted)
    report = explain("--only", "layers,flips")
    assert again == ["flips 1", "answers 0", "answers 1", "answers 2"]
    assert {**report, "machine": None} == {**whole, "machine": None}
    assert not list((home / "unfinished").iterdir())


def test_fresh_forgets_it(
    explain: Explain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["explain", "m.gguf", *SMALL, "--json", "--only", "layers,flips"]
    with monkeypatch.context() as patch:
        patch.setattr(explanation.Explainer, "_flips", stop)
        assert cli.main(command) == 130
    with monkeypatch.context() as patch:
        patch.setattr(layers, "window_divergence", stop)
        assert cli.main([*command, "--fresh"]) == 130
    capsys.readouterr()
    explain("--only", "layers,flips")


def test_a_report_that_cannot_be_written_costs_no_work(
    explain: Explain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder").mkdir()
    command = ["explain", "m.gguf", *SMALL, "--json", "--only", "layers"]
    assert cli.main([*command, "--html", "folder"]) == 1
    capsys.readouterr()
    monkeypatch.setattr(layers, "window_divergence", stop)
    assert len(explain("--only", "layers", "--html", "page.html")["layers"]) == 5
    assert Path("page.html").exists()


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_the_time_needs_no_torch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    assert cli.main(["explain", "m.gguf", *SMALL]) == 1
    assert "pip install 'subsecond[compress]'" in capsys.readouterr().err
    assert cli.main(["explain", "m.gguf", *SMALL, "--only", "time"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "nothing.txt"], "there is no file nothing.txt"),
        (["--text", "m.gguf"], "is not UTF-8 text"),
        (["--prompts", "empty.txt"], "has 0 prompts; give 1 to 1000"),
        (["--prompts", "bad.jsonl"], 'bad.jsonl:2: an object without a text "prompt"'),
        (["--windows", "100"], "ask for at most"),
        (["--windows", "0"], "--windows 0 is not allowed; give a whole number from 1"),
        (["--window-tokens", "129"], "has 129 tokens; the context has 128"),
        (["--max-tokens", "120"], "the context has 128"),
        (["--backend", "torch"], "leave --backend torch out"),
        (["--reference", "nothing"], "there is no model 'nothing'"),
        (["--isa", "mmx"], "instruction set 'mmx' cannot run here"),
    ],
)
def test_errors_say_what_to_do(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.txt").write_text("\n \n")
    Path("bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    given = ["explain", "m.gguf", *SMALL, *arguments, "--json"]
    assert cli.main(given) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "InputError" and message in error["message"]


def test_an_unknown_section_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["explain", "m.gguf", "--only", "layers,weather"])
    assert "expected some of layers,flips,attribution,time" in capsys.readouterr().err


def test_models_with_other_tokens_are_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    length = (1).to_bytes(8, "little")  # in front of the text of a token
    first, second, neither = (length + text for text in (b"q", b"z", b"\0"))
    swapped = valid_model(0).replace(first, neither).replace(second, first).replace(neither, second)
    assert swapped != valid_model(0)
    Path("other.gguf").write_bytes(swapped)
    Path("t.txt").write_text("quiz the world " * 40)
    assert cli.main(["explain", "m.gguf", *SMALL, "--reference", "other.gguf", "--text", "t.txt"]) == 1
    assert "reads text as other tokens than m.gguf" in capsys.readouterr().err


def test_the_median_run_is_reported(explain: Explain, monkeypatch: pytest.MonkeyPatch) -> None:
    run, totals = time_budget._run, iter([9000.0, 30.0, 10.0, 20.0])
    monkeypatch.setattr(time_budget, "_run", lambda *given: replace(run(*given), total_ms=next(totals)))
    assert explain("--only", "time")["time"]["total_ms"] == 20.0
