"""The commands as people and scripts see them: output, JSON shapes, messages and exit codes; no weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from subsecond.cli import chat
from subsecond.cli import main as cli
from subsecond.engine.request import SamplingParams
from subsecond.models import store
from tests.contract.fake_model import FakeModel, turns


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))  # where other programs keep their models
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice"),
        (["run"], "MODEL, PROMPT"),
        (["run", "m", "p", "--top-k", "many"], "invalid int value"),
        (["run", "m", "p", "--logit-bias", "42"], "expected ID=X, for example 42=-5; got '42'"),
        (["run", "m", "p", "--template-kwargs", "[1]"], "expected a JSON object, for example"),
        (["run", "m", "p", "--backend", "abacus"], "invalid choice"),
        (["pull"], "the following arguments are required"),
        (["doctor", "extra"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments, "--json"])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    error = json.loads(printed.out)["error"]
    assert error["type"] == "UsageError" and message in error["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "smollm2-135m", "hi"], "fetch it with: subsecond pull smollm2-135m"),
        (["run", "m", "hi", "--temperature", "-1"], "--temperature -1.0 is not allowed; give a number from 0"),
        (["run", "m", "hi", "--raw", "--thinking"], "--raw goes without the chat template"),
        (["run", "m", "hi", "--raw", "--system", "s"], "--raw and --system exclude each other"),
        (["chat", "nothing"], "there is no model 'nothing'"),
        (["show", "no/such.gguf"], "there is no file or folder 'no/such.gguf'"),
        (["pull", "smolm2-135m"], "did you mean smollm2-135m"),
        (["pull", "../../etc"], "there is no file or folder '../../etc'"),
        (["rm", "smollm2-135m"], "there is no model smollm2-135m on disk"),
    ],
)
def test_errors_exit_with_1_and_say_what_to_do(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("subsecond: ")
    assert message in printed.err
    assert cli.main([*arguments, "--json"]) == 1
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert message in error["message"]
    assert error["type"] == "InputError"
    assert printed.err == ""


def test_run_streams_text_and_ends_with_the_times(model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "m", "Say hello"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "Hello wide world\n"
    assert printed.err == ("TTFT 12 ms, 250.0 tokens/s (5 prompt tokens, 2 cached; 3 new), loaded in 80 ms\n")
    assert model.prompts == ["Say hello"]


def test_run_json_is_one_object(model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "m", "Say hello", "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    assert json.loads(printed.out) == {
        "text": "Hello wide world",
        "reasoning": "",
        "token_ids": [0, 1, 2],
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "cached_tokens": 2},
        "timing": {"load_ms": 80.0, "ttft_ms": 12.4, "tpot_ms": 4.0, "total_ms": 20.4},
        "seed": 7,
        "variant": "fake",
    }


def test_flags_reach_the_model(model: FakeModel) -> None:
    flags = "--isa avx2 --num-threads 1 --context-tokens 99 --weights int8 --kv int8"
    sampling = "--top-k 5 --stop a --stop b --logit-bias 3=-2 --seed 4"
    assert cli.main(["run", "m", "hi", *flags.split(), *sampling.split()]) == 0
    engine = {
        "backend": "native",
        "isa": "avx2",
        "num_threads": 1,
        "context_tokens": 99,
        "weights": "int8",
        "kv": "int8",
    }
    assert model.loaded == ("m", engine)
    params = SamplingParams(**model.settings)
    assert params == SamplingParams(top_k=5, stop=("a", "b"), logit_bias={3: -2.0}, seed=4)


@pytest.mark.parametrize(
    ("flags", "content", "prompt"),
    [
        ([], "from a file\n", "from a file"),
        ([], "two\n\n", "two\n"),
        (["--raw"], "kept\n", ("raw", "kept\n")),
        (
            ["--system", "Be brief"],
            "hi",
            [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "hi"}],
        ),
    ],
)
def test_run_reads_standard_input(
    model: FakeModel, feed: Callable[[str | bytes], None], flags: list[str], content: str, prompt: Any
) -> None:
    feed(content)
    assert cli.main(["run", "m", "-", *flags]) == 0
    assert model.prompts == [prompt]


def test_input_that_is_no_text_is_an_error(
    model: FakeModel, feed: Callable[[str | bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    feed(b"\xff\xfe")
    assert cli.main(["run", "m", "-"]) == 1
    assert "not UTF-8" in capsys.readouterr().err


def test_an_interrupted_run_exits_with_130(model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    model.fail_after = 1
    assert cli.main(["run", "m", "hi"]) == 130
    assert capsys.readouterr().out == "Hello"


def test_an_interrupted_json_run_says_so(model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    model.fail_after = 1
    assert cli.main(["run", "m", "hi", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "Interrupted"


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_standard_input_is_an_error(
    model: FakeModel, feed: Callable[[str | bytes], None], content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    feed(content)
    assert cli.main(["run", "m", "-"]) == 1
    assert "standard input is empty" in capsys.readouterr().err


def test_too_little_memory_is_a_plain_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("subsecond.api.load", load)
    assert cli.main(["run", "m", "hi"]) == 1
    assert "the memory does not suffice" in capsys.readouterr().err


def test_chat_keeps_the_conversation(
    model: FakeModel, feed: Callable[[str | bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    feed("one\n\nrefused\n/what\ntwo\n/reset\nthree\n/exit\nfour\n")
    assert cli.main(["chat", "m"]) == 0
    assert model.prompts == [turns("one"), turns("one", "two"), turns("three")]
    printed = capsys.readouterr()
    assert printed.out == "Hello wide world\n" * 3
    assert "subsecond: this prompt is refused\n" in printed.err
    assert "unknown command /what" in printed.err
    assert printed.err.count("[TTFT 12 ms, 250.0 tokens/s") == 3


def test_an_interrupt_stops_the_answer_and_not_the_chat(
    model: FakeModel, feed: Callable[[str | bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    model.fail_after = 2
    feed("one\ntwo\n")
    assert cli.main(["chat", "m", "--system", "s"]) == 0
    system = {"role": "system", "content": "s"}
    assert model.prompts == [[system, *turns("one")], [system, *turns("one", "two", answer="Hello wide")]]
    assert "[stopped; TTFT" in capsys.readouterr().err


def test_chat_json_prints_an_object_a_turn(
    model: FakeModel, feed: Callable[[str | bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    feed("one\nrefused\ntwo\n")
    assert cli.main(["chat", "m", "--json"]) == 1
    first, refused, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["text"] == second["text"] == "Hello wide world"
    assert refused == {"error": {"type": "InputError", "message": "this prompt is refused"}}
    assert model.prompts[-1] == turns("one", "two")


def test_an_interrupt_before_the_first_token_does_not_end_the_chat(
    model: FakeModel, feed: Callable[[str | bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    feed("interrupted\ntwo\n")
    assert cli.main(["chat", "m"]) == 0
    assert model.prompts == [turns("two")]
    assert "[stopped; no token]" in capsys.readouterr().err


def test_an_interrupted_turn_in_json_is_a_cancelled_answer(
    model: FakeModel, feed: Callable[[str | bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    model.fail_after = 2
    feed("one\ninterrupted\n")
    assert cli.main(["chat", "m", "--json"]) == 1
    cancelled, interrupted = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (cancelled["text"], cancelled["finish_reason"]) == ("Hello wide", "cancelled")
    assert interrupted["error"]["type"] == "Interrupted"


def test_chat_json_prints_an_object_for_every_line(
    model: FakeModel, feed: Callable[[str | bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    feed("one\n\n /reset \n/what now\ntwo\n/exit \nthree\n")
    assert cli.main(["chat", "m", "--json"]) == 1
    one, empty, reset, unknown, two, left = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert one["text"] == two["text"] == "Hello wide world"
    assert "the line is empty" in empty["error"]["message"]
    assert (reset, left) == ({"command": "reset"}, {"command": "exit"})
    assert "unknown command /what" in unknown["error"]["message"]
    assert model.prompts == [turns("one"), turns("two")]


def test_a_full_context_says_how_to_go_on(
    model: FakeModel, feed: Callable[[str | bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    feed("long\n")
    assert cli.main(["chat", "m"]) == 0
    assert "context length is 8 tokens; /reset forgets the conversation" in capsys.readouterr().err


@pytest.mark.parametrize("is_folder", [False, True])
def test_an_unusable_history_costs_one_warning(home: Path, is_folder: bool, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("readline")
    if is_folder:
        (home / "chat_history").mkdir(parents=True)
    else:
        home.write_text("a file where the folder should be")
    with chat._history(is_terminal=True):
        pass
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("subsecond: no history of lines") == 1


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were packed; the bytes in these tests are no models."""
    paths: list[Path] = []
    monkeypatch.setattr("subsecond.cli.pull.pack", lambda path, *_: paths.append(path))
    return paths


def test_list_pull_and_rm_of_a_model_on_disk(
    packed: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("subsecond.models.catalogue._difference", lambda *_: None)  # taken for the real file
    path = store.model_path("smollm2-135m")
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(2_500_000))
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "ORIGIN", "ON", "DISK", "PACKED", "DESCRIPTION"]
    assert lines[1].split()[:4] == ["smollm2-135m", "subsecond", "2.5", "MB"]
    assert cli.main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["models"] == [
        {
            "name": "smollm2-135m",
            "origin": "subsecond",
            "path": str(path),
            "file_bytes": 2_500_000,
            "artifact_bytes": 0,
        }
    ]
    assert {entry["name"] for entry in listed["available"]} >= {"qwen2.5-coder-0.5b", "smollm2-360m"}
    assert cli.main(["pull", "smollm2-135m"]) == 0
    assert capsys.readouterr().out == f"smollm2-135m: 2.5 MB already in {path}\n"
    assert cli.main(["pull", "smollm2-135m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_new"] is False
    assert packed == [path, path]
    assert cli.main(["rm", "smollm2-135m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "smollm2-135m", "freed_bytes": 2_500_000}
    assert not path.exists()


def test_models_of_other_programs_are_listed_and_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    path = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / "1" / "tiny.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF\x03\0\0\0" + bytes(1_500_000))
    assert cli.main(["list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["hf:owner/tiny", "hugging", "face", "1.5", "MB", "-"] in lines
    assert cli.main(["list", "--json"]) == 0
    wanted = {
        "name": "hf:owner/tiny",
        "origin": "hugging face",
        "path": str(path),
        "file_bytes": 1_500_008,
        "artifact_bytes": 0,
    }
    assert wanted in json.loads(capsys.readouterr().out)["models"]
    for name in ("hf:owner/tiny", "tiny"):
        assert cli.main(["rm", name]) == 1
        assert "to delete it: hf cache rm model/owner/tiny" in capsys.readouterr().err
    for name in ("hf:owner/tiny", "tiny", str(path)):
        assert cli.main(["pull", name]) == 1
        assert "run it as it is; copy it into a folder of its own and pull that path" in capsys.readouterr().err
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.usefixtures("packed")
def test_pull_shows_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def ensure(name: str, progress: Callable[[int, int | None], None]) -> Path:
        path = store.model_path(name)
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(10))
        for num_bytes in (4, 10):
            progress(num_bytes, 10)
        return path

    monkeypatch.setattr("subsecond.models.catalogue.ensure", ensure)
    assert cli.main(["pull", "smollm2-135m"]) == 0
    assert capsys.readouterr().out.startswith("smollm2-135m: 10 bytes fetched to ")


def test_doctor_reports_machine_store_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == (0 if report["native"]["error"] is None else 1)
    assert report["machine"]["num_usable_cores"] >= 1
    assert set(report["extras"]) == {"compress", "hub", "cluster"}
    assert report["store"]["num_models"] == 0
    assert any("subsecond pull smollm2-135m" in line for line in report["advice"])
    cli.main(["doctor"])
    text = capsys.readouterr().out
    assert report["machine"]["processor_name"] in text
    assert "huge pages" in text


def test_doctor_counts_models_of_other_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    path = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / "1" / "tiny.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF\x03\0\0\0")
    cli.main(["doctor", "--json"])
    assert not any("no model on disk" in line for line in json.loads(capsys.readouterr().out)["advice"])


def test_doctor_says_of_each_instruction_set_whether_it_runs_and_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBSECOND_ISA", "scalar")
    assert cli.main(["doctor", "--json"]) == 0
    native = json.loads(capsys.readouterr().out)["native"]
    assert (native["chosen"], native["forced_by"], native["arithmetic"]) == ("scalar", "SUBSECOND_ISA", "i16")
    by_isa = {isa["isa"]: isa for isa in native["instruction_sets"]}
    assert by_isa["scalar"] == {
        "isa": "scalar",
        "arithmetic": "i16",
        "can_run": True,
        "is_chosen": True,
        "missing": [],
        "self_test": "passed",
        "reason": "SUBSECOND_ISA=scalar asks for it",
    }
    for isa in by_isa.values():
        assert isa["can_run"] == (not isa["missing"]) == (isa["self_test"] == "passed")
        assert isa["is_chosen"] == (isa["isa"] == "scalar")
    cli.main(["doctor"])
    assert "kernels scalar" in capsys.readouterr().out


def test_doctor_reports_although_the_instruction_set_asked_for_cannot_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBSECOND_ISA", "sve9")
    assert cli.main(["doctor", "--json"]) == 1
    native = json.loads(capsys.readouterr().out)["native"]
    assert native["chosen"] is None and "sve9" in native["error"] and "scalar" in native["error"]
    assert [isa["isa"] for isa in native["instruction_sets"]][-1] == "scalar"
    cli.main(["doctor"])
    assert "SUBSECOND_ISA=sve9" in capsys.readouterr().out


def in_new_process(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from subsecond.cli.main import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in ('numpy', 'tokenizers', 'jinja2', 'tqdm', 'torch', 'urllib.request') if n in sys.modules])"
    )
    done = in_new_process(["-c", code])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_closed_pipe_ends_quietly() -> None:
    command = f"{sys.executable} -m subsecond list --json | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "141")
