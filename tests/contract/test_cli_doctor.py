"""What `subsecond doctor` says of a machine's measured speed: only what was asked for is measured, and it is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from subsecond.backends.native import measuring
from subsecond.backends.probe import Probe
from subsecond.backends.probe_store import load_probe, probe_json, probe_path, save_probe
from subsecond.cli import main as cli
from tests.fuzz.gguf_inputs import valid_model
from tests.unit.backends.made_up_probe import PROBE

Doctor = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SUBSECOND_ISA", raising=False)
    return tmp_path / "home"


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """What measuring gives: round numbers, as if of this machine."""
    found = replace(PROBE, fingerprint=measuring.fingerprint(num_threads=2))
    monkeypatch.setattr(measuring, "fingerprint", lambda: found.fingerprint)
    monkeypatch.setattr(measuring, "measure", lambda: found)
    return found


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    def run(*arguments: str) -> dict[str, Any]:
        cli.main(["doctor", "--json", *arguments])
        report: dict[str, Any] = json.loads(capsys.readouterr().out)["probe"]
        return report

    return run


def test_nothing_is_measured_unasked(probe: Probe, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "measure", None)
    report = doctor()
    assert report["figures"] is None and report["prediction"] is None
    assert "subsecond doctor --measure" in report["error"]
    assert not probe_path(probe.fingerprint).exists()


def test_what_was_measured_is_kept_and_shown(
    probe: Probe, doctor: Doctor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {
        "path": str(probe_path(probe.fingerprint)),
        "error": None,
        "figures": json.loads(json.dumps(probe_json(probe))),
        "prediction": None,
    }
    assert doctor("--measure") == expected
    assert load_probe(probe.fingerprint) == probe
    monkeypatch.setattr(measuring, "measure", None)
    assert doctor() == expected
    cli.main(["doctor"])
    text = capsys.readouterr().out
    assert "avx2 vfmaddps ymm, 10^12 operations/s: 0.1 with 1 thread, 0.2 with 2 threads" in text
    assert "Q8_0: 53.1 GB/s with one row and weights in cache, 40% to 80% of the read rate from memory" in text
    assert "other programs" not in text


def test_figures_of_a_busy_machine_come_with_a_warning(probe: Probe, capsys: pytest.CaptureFixture[str]) -> None:
    save_probe(replace(probe, processor_share=0.6))
    cli.main(["doctor"])
    assert "other programs took 40% of the processors meanwhile" in capsys.readouterr().out


def test_a_damaged_file_is_named_and_renewed(probe: Probe, doctor: Doctor, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_probe(probe)
    path.write_text("{")
    assert f"{path} is not valid JSON" in doctor()["error"]
    cli.main(["doctor"])
    assert "`subsecond doctor --measure` writes it anew" in capsys.readouterr().out
    assert doctor("--measure")["error"] is None
    assert load_probe(probe.fingerprint) == probe


def test_a_model_is_predicted_when_it_is_named(
    probe: Probe, doctor: Doctor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(valid_model(0))
    assert doctor("--model", str(path))["prediction"] is None
    prediction = doctor("--measure", "--model", str(path))["prediction"]
    assert prediction["ttft_ms"] > prediction["tpot_ms"] > 0
    assert min(prediction[f"{part}_bytes"] for part in ("weight", "kv", "arena")) > 0
    assert "F32 was not measured; Q8_0 stands for it" in prediction["assumptions"]
    cli.main(["doctor", "--model", str(path)])
    text = capsys.readouterr().out
    assert f"TTFT {prediction['ttft_ms']:.0f} ms for 512 tokens" in text
    assert "F32 was not measured; Q8_0 stands for it" in text
    save_probe(probe)
    assert cli.main(["doctor", "--model", "no/such.gguf"]) == 1
    assert "no/such.gguf" in capsys.readouterr().err


def test_an_instruction_set_that_cannot_run_has_no_figures(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBSECOND_ISA", "sve9")
    assert "sve9" in doctor("--measure")["error"]
