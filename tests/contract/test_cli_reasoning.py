"""How `run` and `chat` show the reasoning of models, and how flags turn it on and off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from subsecond.cli import main as cli
from tests.contract.fake_model import FakeModel, turns


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["--thinking"], {"enable_thinking": True}),
        (["--no-thinking"], {"enable_thinking": False}),
        (["--template-kwargs", '{"effort": "low"}'], {"template_kwargs": {"effort": "low"}}),
    ],
)
@pytest.mark.parametrize("command", ["run", "chat"])
def test_flags_of_the_template_reach_the_model(
    model: FakeModel, feed: Callable[[str | bytes], None], command: str, flags: list[str], options: dict[str, Any]
) -> None:
    feed("hi\n")
    assert cli.main([command, "m", *(["hi"] if command == "run" else []), *flags]) == 0
    names = ("enable_thinking", "template_kwargs")
    assert {name: model.settings[name] for name in names if name in model.settings} == options


@pytest.mark.parametrize("flags", [["--no-thinking"], ["--template-kwargs", "{}"]])
def test_flags_of_a_template_that_is_not_there(
    model: FakeModel, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model.checkpoint.has_chat_template = False
    assert cli.main(["run", "m", "hi", *flags]) == 1
    assert "no chat template; leave --thinking and --template-kwargs out" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "chat"])
def test_reasoning_goes_to_standard_error(
    model: FakeModel, feed: Callable[[str | bytes], None], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model.num_reasoning = 2
    feed("hi\n")
    assert cli.main([command, "m", *(["hi"] if command == "run" else [])]) == 0
    printed = capsys.readouterr()
    assert printed.out == " world\n"
    assert printed.err.removeprefix("Hello wide\n\n").lstrip("[").startswith("TTFT")


def test_reasoning_is_dim_on_a_terminal(
    model: FakeModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model.num_reasoning = 2
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert cli.main(["run", "m", "hi"]) == 0
    assert capsys.readouterr().err.startswith("\x1b[2mHello\x1b[22m\x1b[2m wide\x1b[22m\n\nTTFT")


@pytest.mark.parametrize("command", ["run", "chat"])
def test_an_answer_that_ends_while_reasoning_says_so(
    model: FakeModel, feed: Callable[[str | bytes], None], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model.num_reasoning = 3
    feed("hi\nagain\n")
    assert cli.main([command, "m", *(["hi"] if command == "run" else [])]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Hello wide world\n[ended while reasoning; there is no answer]\n" in printed.err
    if command == "chat":
        assert model.prompts[-1] == turns("again"), "a turn without an answer is forgotten"


def test_json_has_both_parts(
    model: FakeModel, feed: Callable[[str | bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    model.num_reasoning = 1
    feed("one\n")
    for arguments in (["run", "m", "hi", "--json"], ["chat", "m", "--json"]):
        assert cli.main(arguments) == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["reasoning"], answer["text"]) == ("Hello", " wide world")


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_chat_keeps_reasoning_beside_the_answer(
    model: FakeModel, feed: Callable[[str | bytes], None], flags: list[str]
) -> None:
    model.num_reasoning = 1
    feed("one\ntwo\n")
    assert cli.main(["chat", "m", *flags]) == 0
    answer = {"role": "assistant", "content": " wide world", "reasoning_content": "Hello"}
    assert model.prompts[-1] == [{"role": "user", "content": "one"}, answer, {"role": "user", "content": "two"}]
