"""`subsecond bench` as people and scripts see it: shape of its JSON, table, page, exit codes, resuming; no weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from subsecond.cli import main as cli
from subsecond.engine.blocks import BlockAllocator, BlockTable
from subsecond.measure.target import Trace
from tests.contract.serve.live_server import LiveServer
from tests.contract.serve.scripted_model import ScriptedModel

LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")
SMALL = ["--prompt-tokens", "8", "--output-tokens", "4", "--requests", "4", "--repeat", "2", "--no-cold-start"]

Bench = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SUBSECOND_ISA", raising=False)
    monkeypatch.delenv("SUBSECOND_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def model_path(tmp_path: Path) -> str:
    """A file that is there; what is loaded in its place has no weights."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return str(path)


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ScriptedModel]]:
    """Every model that was loaded."""
    found: list[ScriptedModel] = []

    def load(name: str, **options: Any) -> ScriptedModel:
        found.append(ScriptedModel())
        return found[-1]

    monkeypatch.setattr("subsecond.api.load", load)
    yield found
    assert all(model.is_closed for model in found)


@pytest.fixture
def bench(model_path: str, capsys: pytest.CaptureFixture[str]) -> Bench:
    def run(*arguments: str, code: int = 0) -> dict[str, Any]:
        assert cli.main(["bench", model_path, "--json", *arguments]) == code
        printed = capsys.readouterr().out
        assert printed.count("\n") == 1
        report: dict[str, Any] = json.loads(printed)
        return report

    return run


def test_the_json_has_what_scripts_rely_on(bench: Bench, models: list[ScriptedModel]) -> None:
    report = bench("--workload", "short-chat", "--concurrency", "1,2", *SMALL)
    assert {"machine", "model", "rows", "findings", "warnings"} <= set(report)
    assert [row["concurrency"] for row in report["rows"]] == [1, 2]
    for row in report["rows"]:
        assert row["workload"] == "short-chat" and row["target"] == "engine"
        assert row["prompt_tokens"] == 8 and row["output_tokens"] == 4
        assert row["num_requests"] == 8 and row["num_failed"] == 0
        for name in LATENCIES:
            figures = row[name]
            assert 0 < figures["min"] <= figures["median"] <= figures["p90"] <= figures["p95"]
            assert figures["p95"] <= figures["p99"] <= figures["max"] and figures["mean"] > 0
        for name in ("prefill_tokens_per_s", "decode_tokens_per_s", "output_tokens_per_s", "peak_memory_bytes"):
            assert row[name] > 0
        assert row["energy_j_per_token"] > 0 and row["energy_method"]
        assert row["vllm"]["completed"] == 8 and row["vllm"]["total_output_tokens"] == 32
    assert not [entry for entry in report["findings"] if entry["kind"] != "slow_kernels"]
    assert report["model"]["variant"] == "scripted/fp32/kv-fp32"
    assert report["quality_command"].startswith("subsecond eval ")
    # warm-up 2 for each load, 4 requests for each repeat
    assert len(models[0].engine.requests) == 2 * (2 + 8)


def test_people_get_a_table_with_machine_and_quality(
    model_path: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [{"isa": isa, "can_run": True, "self_test": "passed"} for isa in ("fast", "scalar")]
    monkeypatch.setattr("subsecond.backends.native.report", lambda: {"instruction_sets": sets})
    page, lines = tmp_path / "report.html", tmp_path / "vllm.json"
    arguments = ["--workload", "short-chat", "--goal", "ttft_ms=60000", *SMALL]
    assert cli.main(["bench", model_path, *arguments, "--html", str(page), "--vllm-json", str(lines)]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0].split()[:2] == ["workload", "arrivals"] and "TTFT ms" in text[0]
    assert text[1].startswith("short-chat  1 at a time  engine")
    assert "cores; scalar kernels; scripted as scripted/fp32/kv-fp32" in text[3]
    assert f"subsecond eval {model_path}" in text[3]
    assert any("100% of them within ttft_ms=60000" in line for line in text)
    assert any(line.startswith("FINDING  the scalar kernels ran, although those of fast can run") for line in text)
    html = page.read_text()
    assert "<svg" in html and "Predicted beside measured" in html and "the scalar kernels ran" in html
    assert json.loads(lines.read_text())["backend"] == "engine"


def test_a_failed_request_is_in_the_row_and_in_the_exit_code(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from subsecond.measure.engine_target import EngineTarget

    ask, count = EngineTarget.ask, iter(range(100))

    async def failing(self: EngineTarget, prompt_ids: tuple[int, ...], num_new_tokens: int) -> Trace:
        if next(count) == 3:
            raise RuntimeError("a planted fault")
        return await ask(self, prompt_ids, num_new_tokens)

    monkeypatch.setattr(EngineTarget, "ask", failing)
    report = bench("--workload", "short-chat", *SMALL, code=1)
    (row,) = report["rows"]
    assert row["num_failed"] == 1 and row["errors"] == [{"error": "RuntimeError: a planted fault", "count": 1}]
    assert "1 of 8 requests failed" in [entry["text"] for entry in report["findings"]]


def leak_last_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every table that is closed keep its last block."""
    close = BlockAllocator.close

    def leaking(self: BlockAllocator, table: BlockTable) -> None:
        if table.blocks:
            table.blocks.pop()
            table.num_cached_blocks = min(table.num_cached_blocks, len(table.blocks))
        close(self, table)

    monkeypatch.setattr(BlockAllocator, "close", leaking)
    monkeypatch.setattr("subsecond.measure.load.SETTLE_S", 0.1)  # what is lost does not come back


def test_a_leaking_cache_is_a_finding(
    bench: Bench, model_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leak_last_block(monkeypatch)
    report = bench("--workload", "short-chat", *SMALL)
    (leak,) = [entry for entry in report["findings"] if entry["kind"] == "leak"]
    assert leak["num_blocks"] == 8 and "8 blocks were not given back" in leak["text"]
    assert cli.main(["bench", model_path, "--workload", "short-chat", *SMALL]) == 0
    assert "FINDING  short-chat, 1 at a time, engine: 8 blocks were not given back" in capsys.readouterr().out


def test_servers_are_measured_in_turn(bench: Bench) -> None:
    with LiveServer(["first"]) as server:
        report = bench("--workload", "short-chat", "--against", f"{server.url}/v1", *SMALL)
        assert len(server.model.engine.requests) == 1 + 2 + 8  # how it wants to be asked, warm-up, repeats
    engine, over_http = report["rows"]
    assert over_http["target"] == f"{server.url}/v1" and engine["target"] == "engine"
    assert (over_http["prompt_tokens"], over_http["output_tokens"]) == (8, 4)
    assert over_http["num_failed"] == 0 and over_http["ttft_ms"]["median"] > 0
    assert over_http["energy_j_per_token"] is None or "RAPL" in over_http["energy_method"]
    told = report["targets"][f"{server.url}/v1"]
    assert told["model"] == "first" and told["prompts"] == "token ids"
    assert not [entry for entry in report["findings"] if entry["kind"] == "leak"]


def test_a_leaking_server_is_a_finding(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    leak_last_block(monkeypatch)
    with LiveServer(["first"]) as server:
        arguments = ["--no-in-process", "--against", f"{server.url}#first", "--workload", "short-chat", *SMALL]
        monkeypatch.setattr("subsecond.models.checkpoint.open_checkpoint", lambda _: ScriptedModel().checkpoint)
        report = bench(*arguments)
    (leak,) = [entry for entry in report["findings"] if entry["kind"] == "leak"]
    assert "of the key/value blocks were not given back" in leak["text"]
    assert leak["block_share"] == pytest.approx(8 / 2048, rel=0.01)


def test_a_server_that_fails_costs_the_other_targets_nothing(bench: Bench) -> None:
    with LiveServer(["first"], max_requests=1) as server:
        server.model.backend.step_s = 0.05  # so that the four are there at once
        report = bench("--workload", "short-chat", "--concurrency", "4", "--against", server.url, *SMALL, code=1)
    engine, over_http = report["rows"]
    assert engine["num_failed"] == 0 and over_http["num_failed"] > 0
    assert "status 429" in over_http["errors"][0]["error"]


def test_random_and_given_times(bench: Bench, tmp_path: Path) -> None:
    (row,) = bench("--workload", "short-chat", "--rate", "200", *SMALL)["rows"]
    assert row["concurrency"] is None and row["request_rate"] == 200 and row["vllm"]["request_rate"] == 200
    path = tmp_path / "arrivals.jsonl"
    path.write_text('{"at_s": 0}\n{"at_s": 0.01, "prompt_tokens": 12}\n{"at_s": 0.02, "output_tokens": 6}\n')
    arguments = ["--workload", "short-chat", "--repeat", "1", "--arrivals", str(path), "--no-cold-start"]
    (row,) = bench(*arguments, "--prompt-tokens", "6", "--output-tokens", "3")["rows"]
    assert row["num_requests"] == 3 and row["prompt_tokens"] == 8 and row["output_tokens"] == 4
    assert row["arrivals"] == "times of a file"


def test_a_sweep_says_the_last_level_that_held(bench: Bench, models: list[ScriptedModel]) -> None:
    arguments = ["--workload", "short-chat", "--sweep", "--sweep-limit", "4", *SMALL]
    report = bench(*arguments, "--goal", "ttft_ms=60000")
    (sweep,) = report["sweeps"]
    assert sweep["last_held"] == 4 and sweep["first_broken"] is None and len(report["rows"]) == 3
    (broken,) = bench(*arguments, "--goal", "ttft_ms=0.000001")["sweeps"]
    assert broken["last_held"] is None and broken["first_broken"] == 1 and len(broken["levels"]) == 1


def test_what_was_interrupted_goes_on_where_it_stopped(
    bench: Bench,
    models: list[ScriptedModel],
    model_path: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from subsecond.measure.load import measure_load

    count = iter(range(100))

    async def interrupted(*arguments: Any) -> Any:
        if next(count) == 1:
            raise KeyboardInterrupt
        return await measure_load(*arguments)

    monkeypatch.setattr("subsecond.measure.rounds.measure_load", interrupted)
    assert cli.main(["bench", model_path, "--workload", "short-chat", *SMALL]) == 130
    assert "the same command goes on where it stopped" in capsys.readouterr().err
    monkeypatch.setattr("subsecond.measure.rounds.measure_load", measure_load)
    (row,) = bench("--workload", "short-chat", *SMALL)["rows"]
    assert row["num_requests"] == 8
    assert len(models[1].engine.requests) == 2 + 4  # the first repeat was done
    bench("--workload", "short-chat", *SMALL)
    assert len(models[2].engine.requests) == 2 + 8  # a run that ended leaves nothing


def test_a_report_that_cannot_be_written_costs_no_measurement(
    bench: Bench, models: list[ScriptedModel], model_path: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["--workload", "short-chat", *SMALL]
    assert cli.main(["bench", model_path, *arguments, "--html", str(tmp_path / "file" / "report.html")]) == 1
    bench(*arguments)
    assert models[1].engine.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "chat"], "there is no workload 'chat'; there are short-chat"),
        (["--rate", "2", "--concurrency", "2"], "exclude each other"),
        (["--sweep"], "give a --goal"),
        (["--goal", "fast"], "'fast' is no goal"),
        (["--arrivals", "no-such-file"], "there is no file 'no-such-file'"),
        (["--no-in-process"], "nothing is left to be measured"),
        (["--against", "llama.cpp"], "is no address and no engine that is known here"),
        (["--profile", *SMALL], "--profile times the native kernels in this process"),
        (["--against", "http://x?y"], "is no address of a server"),
        (["--prompt-tokens", "5000"], "but 4096 fit; give fewer --prompt-tokens"),
        (["--concurrency", "0"], "--concurrency [0] is not allowed; give a list of whole numbers from 1 up to 4096"),
    ],
)
def test_wrong_orders_are_refused_before_anything_is_measured(
    arguments: list[str], message: str, model_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", model_path, "--no-cold-start", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_model_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "no/such.gguf"]) == 1
    assert "there is no file or folder 'no/such.gguf'" in capsys.readouterr().err
