"""The commands with real weights, each in a process of its own as people start them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.real_model
SUBSECOND = [sys.executable, "-m", "subsecond"]
QUESTION = "What is the capital of France?"


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SUBSECOND, *arguments], input=stdin, capture_output=True, text=True, timeout=300, check=False
    )


def run_json(*arguments: str, stdin: str = "") -> list[dict[str, Any]]:
    done = run(*arguments, "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr + done.stdout
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_run_answers_a_question(smollm2_path: Path) -> None:
    (answer,) = run_json("run", str(smollm2_path), QUESTION, "--max-tokens", "24")
    assert "Paris" in answer["text"]
    assert answer["finish_reason"] in ("stop", "length")
    assert answer["usage"]["completion_tokens"] == len(answer["token_ids"])
    assert answer["usage"]["prompt_tokens"] > 10
    timing = answer["timing"]
    assert timing["load_ms"] > 0
    assert 0 < timing["ttft_ms"] <= timing["total_ms"]
    streamed = run("run", str(smollm2_path), QUESTION, "--max-tokens", "24")
    assert streamed.returncode == 0, streamed.stderr
    assert streamed.stdout == answer["text"] + "\n"
    assert "TTFT" in streamed.stderr and "tokens/s" in streamed.stderr


def test_run_answers_with_keys_and_values_of_eight_bits(smollm2_path: Path) -> None:
    (answer,) = run_json("run", str(smollm2_path), QUESTION, "--max-tokens", "24", "--kv", "int8")
    assert "Paris" in answer["text"]
    assert answer["variant"].endswith("/kv-int8")


def test_the_same_seed_gives_the_same_answer(smollm2_path: Path) -> None:
    flags = ("--temperature", "1", "--top-p", "0.95", "--max-tokens", "12", "--seed")
    first, second, other = (
        run_json("run", str(smollm2_path), "Tell me a story.", *flags, seed)[0]["token_ids"] for seed in ("3", "3", "4")
    )
    assert first == second != other


def test_chat_remembers_and_reuses_what_it_computed(smollm2_path: Path) -> None:
    lines = "My name is Ada. Please remember it.\nWhat is my name?\n"
    first, second = run_json("chat", str(smollm2_path), "--max-tokens", "32", stdin=lines)
    assert first["text"] and "Ada" in second["text"]
    assert second["usage"]["cached_tokens"] > 0


def test_an_interrupt_stops_the_answer_and_chat_goes_on(smollm2_path: Path) -> None:
    # A test run in the background of a script inherits an ignored SIGINT.
    start = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from subsecond.cli.main import main; raise SystemExit(main())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", start, "chat", str(smollm2_path), "--ignore-eos"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write("Count from one to a thousand.\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith("[stopped; TTFT")
        process.stdin.write("/exit\n")
        process.stdin.close()
        process.stdout.read()
        assert process.wait(timeout=60) == 0


def test_show_prints_the_graph_after_a_pass(smollm2_path: Path) -> None:
    (shown,) = run_json("show", str(smollm2_path))
    assert shown["config"]["family"] == "llama"
    assert 130e6 < shown["num_parameters"] < 140e6
    assert shown["has_chat_template"]
    built = run("show", str(smollm2_path), "--graph", "--after", "none")
    fused = run("show", str(smollm2_path), "--graph")
    assert built.returncode == fused.returncode == 0, built.stderr + fused.stderr
    assert len(fused.stdout.splitlines()) < len(built.stdout.splitlines())
    wrong = run("show", str(smollm2_path), "--after", "magic")
    assert wrong.returncode == 1 and "there is no pass 'magic'" in wrong.stderr


def test_a_program_may_end_in_the_middle_of_an_answer(smollm2_path: Path) -> None:
    code = (
        "import itertools, sys, subsecond\n"
        "model = subsecond.load(sys.argv[1])\n"
        "stream = model.stream('Tell me a long story.', max_tokens=2000)\n"
        "print(sum(1 for _ in itertools.islice(iter(stream.tokens), 3)))\n"
    )
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code, str(smollm2_path)], capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
