"""The long fuzzing campaign: half a million inputs over all readers, a part of them guided by coverage.

Faulty inputs and the corpora that guidance found stay in build/fuzz. A failing case belongs into corpus/ afterwards.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fuzz import campaign, coverage_guided, guided_campaign

NUM_INPUTS = 500_000
GUIDED_SHARE = 0.3
FOLDER = Path(__file__).resolve().parents[2] / "build" / "fuzz"


@pytest.mark.acceptance
def test_half_a_million_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    def tell(line: str) -> None:
        with capsys.disabled():
            print(f"fuzzing: {line}", flush=True)  # noqa: T201

    shutil.rmtree(FOLDER, ignore_errors=True)
    num_guided = int(NUM_INPUTS * GUIDED_SHARE) if coverage_guided.is_available() else 0
    if not num_guided:
        tell("atheris is not installed (it has wheels for CPython 3.11 to 3.13 on x86-64); all inputs are unguided")
    unguided = campaign.run(campaign.shares(NUM_INPUTS - num_guided), save_to=FOLDER / "unguided", tell=tell)
    tell(str(unguided))
    reports = [unguided]
    if num_guided:
        reports.append(guided_campaign.run(campaign.shares(num_guided), save_to=FOLDER / "guided", tell=tell))
        tell(str(reports[-1]))
    faults = [str(fault) for report in reports for fault in report.faults]
    assert not faults, "\n".join(faults)
    assert sum(report.num_inputs for report in reports) >= NUM_INPUTS
