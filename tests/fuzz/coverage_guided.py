"""Fuzzes one reader with atheris, which keeps the inputs that reach new code; run as a child process of a campaign.

`python -m tests.fuzz.coverage_guided READER NUM_INPUTS FOLDER`: new inputs go to FOLDER/READER/corpus, those of faults
to FOLDER/READER, and FOLDER/READER/summary.json has the counts.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

MAX_INPUT_BYTES = 1 << 17
INSTRUMENTED = ("subsecond.formats", "subsecond.graph", "subsecond.models", "subsecond.backends.native")

LATE_IMPORTS = ("subsecond.models.template_sandbox", "subsecond.models.tokenizer", "subsecond.models.weights")
"""Modules that the product imports when they are first needed, which would be after the instrumentation."""


def is_available() -> bool:
    """Whether atheris is installed; it has wheels for some Python versions only."""
    return importlib.util.find_spec("atheris") is not None


def main() -> None:
    """Run in this process, which libFuzzer ends."""
    reader, num_inputs, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=list(INSTRUMENTED), enable_loader_override=False):
        from tests.fuzz.harnesses import HARNESSES
        from tests.fuzz.oracle import Oracle

        for name in LATE_IMPORTS:
            importlib.import_module(name)
    logging.disable()
    harness = HARNESSES[reader]
    corpus = folder / reader / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in range(40):
        (corpus / f"start_{seed}").write_bytes(harness.mutate(Random(f"{reader} start {seed}")))
    oracle = Oracle(Path(tempfile.mkdtemp(dir=folder)))
    outcomes: Counter[str] = Counter()
    faults: list[str] = []

    def read(data: bytes) -> None:
        verdict = oracle.judge(harness, data, is_traced=outcomes.total() % 4 == 0)
        outcomes[verdict.outcome] += 1
        if verdict.fault:
            place = folder / reader / f"fault_{len(faults)}.bin"
            place.write_bytes(data)
            faults.append(f"{verdict.fault} (input in {place})")

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        """Half of the inputs are new files with a known structure, the others changes of what the corpus has."""
        if seed % 2:
            return harness.mutate(Random(seed))[:max_size]
        changed: bytes = atheris.Mutate(data, max_size)
        return changed

    options = [f"-atheris_runs={num_inputs}", f"-max_len={MAX_INPUT_BYTES}", "-seed=1", "-timeout=60", "-verbosity=0"]
    atheris.Setup(
        [sys.argv[0], *options, f"-artifact_prefix={folder}/{reader}/", str(corpus)], read, custom_mutator=change
    )
    summary = folder / reader / "summary.json"

    def write_summary() -> None:
        summary.write_text(json.dumps({"outcomes": outcomes, "faults": faults}))

    importlib.import_module("atexit").register(write_summary)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
