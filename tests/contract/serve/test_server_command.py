"""The command `subsecond serve`: its flags, names, keys, and how it starts, answers and ends as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from subsecond.cli import main as cli
from subsecond.cli.serve import model_specs
from subsecond.core.errors import InputError
from subsecond.core.settings import from_arguments, settings_of
from subsecond.serve.settings import ServeSettings

KEY = "a-key-0123456789"

# the command with a loader that needs no weights, in a process of its own
PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from subsecond.cli import main, serve
from tests.contract.serve.live_server import ScriptedLoader
class Loader(ScriptedLoader):
    def load(self, spec):
        loaded = super().load(spec)
        loaded.model.backend.step_s = {step_s}
        return loaded
loader = Loader()
serve._Loader = lambda *_: loader
sys.exit(main.main(sys.argv[1:]))
"""
ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def serving(*flags: str, step_s: float = 0.0, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server, whose steps take so long at least, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(root=str(ROOT), step_s=step_s), "serve", *flags, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            told = json.loads(line)
            yield process, told["address"]
        finally:
            process.kill()


def test_the_command_serves_those_with_a_key_and_a_signal_ends_it() -> None:
    flags = ("one", "two=some/path.gguf", "--port", "0", "--host", "0.0.0.0")
    with serving(*flags, SUBSECOND_API_KEYS=f"alice {KEY}") as (process, address):
        url = address.replace("0.0.0.0", "127.0.0.1")
        headers = {"authorization": f"Bearer {KEY}"}
        body = {"model": "two", "messages": [{"role": "user", "content": "say hi"}]}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60).json()
        assert answer["choices"][0]["message"]["content"] == "hi"
        assert httpx.get(f"{url}/v1/models", timeout=60).status_code == 401
        models = httpx.get(f"{url}/v1/models", headers=headers, timeout=60).json()["data"]
        assert [item["id"] for item in models] == ["one", "two"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None and process.stderr.read() == ""


def test_keys_are_given_by_no_flag() -> None:
    flags = {item.flag for item in settings_of(ServeSettings)}
    assert "--api-key-file" in flags and not any(flag.endswith(("-key", "-keys")) for flag in flags)


def test_an_interrupt_drains_and_a_second_one_ends_at_once() -> None:
    # steps so long that the answer outlasts the test on any machine
    with serving("one", "--port", "0", "--drain-timeout-s", "1000", step_s=0.05) as (process, address):
        body = {"model": "one", "messages": [{"role": "user", "content": "random"}], "max_tokens": 4000, "stream": True}
        with (
            pytest.raises(httpx.HTTPError),
            httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as stream,
        ):
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            while httpx.get(f"{address}/health/ready", timeout=60).status_code == 200:
                pass
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            for _ in lines:
                pass
        assert process.wait(60) == 130


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["a=.", "--host", "0.0.0.0"], "host 0.0.0.0 lets other machines connect, which needs API keys"),
        (["m", "--port", "70000"], "--port 70000 is not allowed; give a whole number from 0 up to 65535"),
        (["m", "--max-body-bytes", "0"], "--max-body-bytes 0 is not allowed"),
        (["m", "--api-key-file", "no/such/file"], "cannot read the key file no/such/file"),
        (["m=.", "m=."], "two models have the name 'm'; give one another, as NAME=MODEL"),
        (["no/such.gguf", "--port", "0"], "there is no file or folder 'no/such.gguf'"),
        (["a=.", "b=no/such.gguf", "--port", "0"], "there is no file or folder 'no/such.gguf'"),
        (["a=.", "--uds", "no/such/folder/socket"], "cannot listen on no/such/folder/socket"),
    ],
)
def test_wrong_settings_end_the_command_with_what_to_do(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SUBSECOND_API_KEYS", raising=False)
    assert cli.main(["serve", *flags]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err


def test_every_setting_is_a_flag_with_its_default() -> None:
    parser = cli.build_parser()
    args = parser.parse_args(["serve", "m"])
    assert from_arguments(ServeSettings, args) == ServeSettings()
    args = parser.parse_args(
        ["serve", "m", "--port", "1", "--allowed-hosts", "a", "--allowed-hosts", "b", "--access-log"]
    )
    assert from_arguments(ServeSettings, args) == ServeSettings(port=1, allowed_hosts=("a", "b"), access_log=True)


@pytest.mark.parametrize(
    ("text", "name", "source"),
    [
        ("smollm2-135m", "smollm2-135m", "smollm2-135m"),
        ("hf:owner/name", "hf:owner/name", "hf:owner/name"),
        ("fast=smollm2-135m", "fast", "smollm2-135m"),
        ("a/b:c=/x/y=z.gguf", "a/b:c", "/x/y=z.gguf"),
        ("./missing.gguf", "./missing.gguf", "./missing.gguf"),
    ],
)
def test_names_of_models(text: str, name: str, source: str) -> None:
    (spec,) = model_specs([text])
    assert (spec.name, spec.source) == (name, source)


def test_files_and_folders_are_served_under_their_own_names(tmp_path: Path) -> None:
    (tmp_path / "model.Q4=K.gguf").touch()
    (tmp_path / "folder").mkdir()
    specs = model_specs([str(tmp_path / "model.Q4=K.gguf"), str(tmp_path / "folder") + "/"])
    assert [spec.name for spec in specs] == ["model.Q4=K", "folder"]
    with pytest.raises(InputError, match="gives no name to serve it under; write NAME=MODEL"):
        model_specs(["/"])
