"""`subsecond bench` with a real model: in process, over HTTP, a cold start, predictions from a stored probe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from subsecond.cli import main as cli
from tests.unit.backends.made_up_probe import PROBE

pytestmark = pytest.mark.real_model


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "home"))


def test_in_process_over_http_and_cold(
    smollm2_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from subsecond.backends.native import measuring
    from subsecond.backends.probe_store import save_probe

    # figures that are not this machine's, but stored as if they were
    monkeypatch.setattr(measuring, "fingerprint", lambda *_: PROBE.fingerprint)
    save_probe(replace(PROBE))
    page = tmp_path / "report.html"
    loads = ["--workload", "shared-prefix", "--prompt-tokens", "128", "--shared-tokens", "64", "--output-tokens", "8"]
    sizes = ["--requests", "3", "--repeat", "1", "--warmup", "1", "--context-tokens", "1024"]
    code = cli.main(["bench", str(smollm2_path), "--json", "--http", "--profile", *loads, *sizes, "--html", str(page)])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == 0, report["findings"]
    assert [entry for entry in report["findings"] if entry["kind"] != "slow_operator"] == []
    prefill, decode = report["profile"]["steps"]
    assert (prefill["num_rows"], decode["num_rows"]) == (512, 1)
    names = {group["name"]: group for group in decode["groups"]}
    assert names["blk.*.attention"]["num_calls"] == 30 and names["logits"]["num_calls"] == 1
    assert all(0 < group["ms"] < step["ms"] for step in (prefill, decode) for group in step["groups"])
    assert sum(group["num_bytes"] for group in decode["groups"]) > 0.9 * report["model"]["weight_bytes"]
    engine, server = report["rows"]
    assert (engine["target"], server["target"]) == ("engine", "server")
    for row in (engine, server):
        assert row["num_failed"] == 0 and row["num_requests"] == 3
        assert (row["prompt_tokens"], row["output_tokens"], row["cached_tokens"]) == (128, 8, 64)
        assert row["peak_memory_bytes"] > 50e6 and row["energy_j_per_token"] > 0
    assert engine["predicted"]["ttft_ms"] > 0 and engine["predicted"]["tpot_error"] is not None
    assert 0.3 < engine["model_memory_bytes"] / report["model"]["weight_bytes"] < 10
    assert report["cold_start"]["end_ms"] >= report["cold_start"]["first_token_ms"] > 0
    assert report["targets"]["server"]["prompts"] == "token ids"
    assert "TTFT, ms" in page.read_text()
