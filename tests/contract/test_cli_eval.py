"""`subsecond eval` as people and scripts see it, over a tiny random model: figures, resuming, reports, refusals."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from subsecond.cli import main as cli
from subsecond.formats.gguf import GgufFile
from subsecond.measure import evaluation_run, window_scores
from subsecond.measure.eval_figures import TEXT_FIGURES
from subsecond.models.weights import GgufWeights
from tests.fuzz import tiny_model
from tests.fuzz.gguf_inputs import valid_model

TEXT = "The hello world is the world of the hello. Who tells the hello to the world? " * 6
TASKS: dict[str, list[dict[str, Any]]] = {
    "choices": [
        {"question": "hello?", "choices": ["the", "a world"], "answer": 0, "domain": "x", "language": "en"},
        {"question": "world?", "choices": ["hello", "no"], "answer": "no", "domain": "y", "language": "en"},
        {"text": "the", "choices": ["world", "hell"], "answer": 1, "domain": "y", "language": "de"},
    ],
    "labels": [{"text": "hello", "label": "good"}, {"text": "hell", "label": "bad"}],
    "free": [{"question": "hello?", "answer": "world"}, {"question": "a", "answer": ["b", "c"]}],
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model `m.gguf` and material, which is the working folder."""
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.gguf").write_bytes(valid_model(0))
    (tmp_path / "t.txt").write_text(TEXT)
    for name, lines in TASKS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main(["eval", *arguments, "--num-threads", "1", "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    found: dict[str, Any] = json.loads(printed)
    return found


TEXT_FLAGS = ("--text", "t.txt", "--windows", "3", "--window-tokens", "64")


def test_without_a_reference_only_what_needs_none_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "m.gguf", *TEXT_FLAGS, "--task", "choices.jsonl")
    assert (found["num_windows"], found["num_tokens"], found["reference"]) == (3, 189, None)
    assert set(found["perplexity"]) == {"value", "low", "high"}
    assert [found[name] for name in TEXT_FIGURES if name != "perplexity"] == [None] * (len(TEXT_FIGURES) - 1)
    assert found["findings"] == found["worst_tokens"] == []
    choices = found["tasks"]["choices"]
    assert (choices["kind"], choices["num_items"], choices["flip_rate"]) == ("multiple choice", 3, None)
    assert 0 <= choices["accuracy"]["low"] <= choices["accuracy"]["value"] <= choices["accuracy"]["high"] <= 1
    assert set(choices["slices"]) == {"domain", "language"} and set(choices["slices"]["domain"]) == {"x", "y"}
    assert {"processor", "isa", "subsecond", "measured_at"} <= set(found["machine"])
    assert found["variant"].startswith("faithful/")


def test_the_reference_is_the_file_itself_in_fp32_and_stored_weights_are_near_it(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    found = run_json(
        capsys, "m.gguf", "--reference", *TEXT_FLAGS, *(f"--task={name}.jsonl" for name in TASKS), "--html", "r.html"
    )
    assert found["kl_mean"]["value"] < 0.01 and found["top1_agreement"]["value"] > 0.9
    assert found["perplexity_ratio"]["value"] == pytest.approx(1, abs=0.01)
    assert set(found["tasks"]) == set(TASKS)
    assert found["tasks"]["choices"]["flip_rate"] is not None
    assert found["tasks"]["labels"]["kind"] == "classification"
    assert found["tasks"]["free"]["exact_match_reference"]["value"] == 0
    assert found["findings"] == []
    worst = found["worst_tokens"]
    assert [each["kl"] for each in worst] == sorted((each["kl"] for each in worst), reverse=True)
    assert worst[0]["text"] == "t.txt" and len(worst[0]["reference_top"]) == 3
    page = (place / "r.html").read_text()
    assert (
        page.startswith("<!doctype html>")
        and "<script" not in page
        and "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    )
    for words in ("kl_mean", "By window", "Tokens that differ most", "Task choices", "accuracy by domain"):
        assert words in page


def test_an_int8_variant_is_not_its_own_reference(capsys: pytest.CaptureFixture[str]) -> None:
    stored = run_json(capsys, "m.gguf", "--reference", "self", *TEXT_FLAGS)
    int8 = run_json(capsys, "m.gguf", "--reference", "self", "--weights", "int8", *TEXT_FLAGS)
    assert int8["variant"].startswith("int8/")
    assert int8["kl_mean"]["low"] > 0
    assert int8["kl_mean"]["value"] > 2 * stored["kl_mean"]["value"] > 0
    assert int8["perplexity_reference"] == stored["perplexity_reference"]


def wrong_scales(path: Path, name: str) -> bytes:
    """The file with the scales of one stored weight 64 times too large."""
    content = path.read_bytes()
    weights = GgufWeights(GgufFile.open(path))
    raw, type_id = weights.raw(name).tobytes(), int(weights.type_of(name))
    _, block_bytes, halves = tiny_model.BLOCKS[type_id]
    assert content.count(raw) == 1 and halves
    changed = bytearray(raw)
    for start in range(0, len(raw), block_bytes):
        assert raw[start : start + 2] == b"\x00\x2c"
        changed[start : start + 2] = b"\x00\x44"
    return content.replace(raw, bytes(changed))


def quantized_weight(path: Path) -> str:
    """A matrix of a layer that is stored in blocks with scales."""
    weights = GgufWeights(GgufFile.open(path))
    blocked = (tiny_model.Q4_0, tiny_model.Q8_0, tiny_model.Q5_0)
    return next(
        name
        for name in weights.shapes
        if name.startswith("blk.0.") and int(weights.type_of(name)) in blocked and ("ffn" in name or "output" in name)
    )


def test_wrong_scales_of_one_layer_are_a_finding(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    (place / "broken.gguf").write_bytes(wrong_scales(place / "m.gguf", quantized_weight(place / "m.gguf")))
    found = run_json(capsys, "broken.gguf", "--reference", "m.gguf", *TEXT_FLAGS)
    assert found["findings"]
    assert all("subsecond explain broken.gguf --reference m.gguf" in sentence for sentence in found["findings"])
    arguments = ["eval", "broken.gguf", "--reference", "m.gguf", *TEXT_FLAGS, "--html", "r.html"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    assert "FINDING: " in printed.err and "kl_mean" in printed.out
    assert 'class="warning"' in (place / "r.html").read_text()


def test_an_interrupted_run_goes_on_where_it_stopped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("m.gguf", *TEXT_FLAGS, "--task", "choices.jsonl")
    whole = run_json(capsys, *arguments)
    scored: list[Any] = []
    real = window_scores.score_window
    limit = 2

    def interrupted(*given: Any) -> Any:
        if len(scored) == limit:
            raise KeyboardInterrupt
        scored.append(given[-1])
        return real(*given)

    monkeypatch.setattr(evaluation_run, "score_window", interrupted)
    assert cli.main(["eval", *arguments, "--num-threads", "1", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "Interrupted"
    limit = 3
    assert cli.main(["eval", *arguments, "--num-threads", "1", "--json"]) == 0
    printed = capsys.readouterr()
    assert "going on after 2 steps" in printed.err
    resumed = json.loads(printed.out)
    assert len(scored) == 3
    assert {**resumed, "machine": None} == {**whole, "machine": None}


def test_other_work_and_fresh_work_begin_anew(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[Any] = []
    real = window_scores.score_window

    def counted(*given: Any) -> Any:
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(given[-1])
        return real(*given)

    monkeypatch.setattr(evaluation_run, "score_window", counted)
    for flags in ((), ("--kv", "int8"), ("--weights", "int8"), ("--stride", "32"), ("--isa", "scalar"), ("--fresh",)):
        scored.clear()
        assert cli.main(["eval", "m.gguf", *TEXT_FLAGS, *flags, "--json"]) == 130
        assert len(scored) == 2, flags
        capsys.readouterr()
    scored.clear()
    assert cli.main(["eval", "m.gguf", *TEXT_FLAGS, "--json"]) == 0
    assert len(scored) == 1


def test_windows_that_overlap_score_every_token_once(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "m.gguf", *TEXT_FLAGS, "--stride", "16")
    assert (found["num_windows"], found["num_tokens"]) == (3, 63 + 2 * 16)


def test_texts_of_several_kinds_are_sliced(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    lines = [{"text": TEXT, "domain": "law", "language": "en"}, {"text": TEXT[::-1], "domain": "news"}]
    (place / "many.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = run_json(capsys, "m.gguf", "--text", "many.jsonl", "--text", "t.txt", "--windows=2", "--window-tokens=50")
    assert found["num_windows"] == 6
    assert set(found["slices"]["domain"]) == {"law", "news"} and set(found["slices"]["language"]) == {"en"}
    assert set(found["slices"]["text"]) == {"many.jsonl:1", "many.jsonl:2", "t.txt"}
    law, plain = (found["slices"][kind][name]["perplexity"] for kind, name in (("domain", "law"), ("text", "t.txt")))
    assert law == plain


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text", "none.txt"], "there is no file none.txt"),
        (["--text", "t.txt", "--windows", "900", "--window-tokens", "64"], "t.txt: the text has"),
        (["--text", "t.txt", "--window-tokens", "129"], "do not fit into the model's context of 128"),
        (["--text", "t.txt", "--window-tokens", "1"], "--window-tokens 1 is not allowed"),
        (["--text", "t.txt", "--window-tokens", "9", "--stride", "10"], "a stride of 10 would leave out tokens"),
        (["--text", "t.txt", "--window-tokens", "64", "--context-tokens", "32"], "does not fit into the key/value"),
        (
            ["--task", "free.jsonl", "--answer-tokens", "120"],
            "but the model's context is 128; shorten it, or give fewer",
        ),
        (["--task", "t.txt"], "t.txt, line 1: it is not valid JSON"),
        (["--reference", "other.gguf", "--text", "t.txt"], "there is no file or folder 'other.gguf'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", "m.gguf", *flags]) == 1
    assert message in capsys.readouterr().err


def test_a_reference_with_other_tokens_is_refused(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    content = valid_model(0)
    (place / "other.gguf").write_bytes(content.replace(b"<tool>", b"<pool>"))
    assert cli.main(["eval", "m.gguf", "--reference", "other.gguf", *TEXT_FLAGS]) == 1
    message = capsys.readouterr().err
    assert "different tokens, for example token" in message and "the same tokenizer" in message


def test_without_torch_a_reference_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else real(name, *rest))
    assert cli.main(["eval", "m.gguf", "--reference", *TEXT_FLAGS]) == 1
    assert "pip install 'subsecond[compress]'" in capsys.readouterr().err
    assert cli.main(["eval", "m.gguf", *TEXT_FLAGS]) == 0
