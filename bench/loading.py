"""Times how a model's weights come into memory, and how much memory that takes at most; Linux only.

Run: python -m bench.loading FILE [THREADS]
Reads the file once, so that it is cached, and then, each in a fresh process: the weights packed from the file, and
those of the artifact beside it where there is one. Prints a line of JSON for each. Memory that the machine itself has
to fetch from its host first can make the first run several times slower than the next ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from subsecond.backends import native
from subsecond.backends.native.weight_formats import choose_formats, readings_of
from subsecond.backends.native.weights import pack_weights, read_packed_weights
from subsecond.core.hardware import probe
from subsecond.graph.plan import compile_plan
from subsecond.models.checkpoint import open_checkpoint

CONTEXT_TOKENS = 2048
CHUNK_BYTES = 2**24


def peak_bytes() -> int:
    """Most memory that this process had so far, mapped files included."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def measure(path: Path, num_threads: int, has_artifact: bool) -> dict[str, object]:
    """Milliseconds, GB/s and peak memory over the bytes of the weights, before and with them."""
    before = peak_bytes()
    checkpoint = open_checkpoint(path, can_use_artifact=has_artifact)
    graph = compile_plan(checkpoint.graph(CONTEXT_TOKENS)).segments[0].graph
    formats = choose_formats(graph, checkpoint.weights, readings_of(checkpoint.readings, None))
    start = time.perf_counter()
    if has_artifact:
        assert checkpoint.artifact is not None
        weights = read_packed_weights(checkpoint.artifact)
    else:
        weights = pack_weights(checkpoint.weights, formats, num_threads)
    elapsed = time.perf_counter() - start
    return {
        "from": "artifact" if has_artifact else "file",
        "threads": num_threads,
        "weight_bytes": weights.num_bytes,
        "ms": round(elapsed * 1e3, 1),
        "gb_per_s": round(weights.num_bytes / elapsed / 1e9, 2),
        "peak_over_weights": round(peak_bytes() / weights.num_bytes, 3),
        "peak_before_over_weights": round(before / weights.num_bytes, 3),
    }


def main() -> None:
    """Measure in fresh processes, or, told from where, in this one."""
    path, *rest = sys.argv[1:]
    num_threads = int(rest[0]) if rest else probe().num_usable_cores
    if len(rest) > 1:
        print(json.dumps(measure(Path(path), num_threads, rest[1] == "artifact")))
        return
    with Path(path).open("rb") as file:
        while file.read(CHUNK_BYTES):
            pass
    places = ["file", "artifact"] if native.is_packed(open_checkpoint(Path(path))) else ["file"]
    for place in places:
        command = [sys.executable, "-m", "bench.loading", path, str(num_threads), place]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
