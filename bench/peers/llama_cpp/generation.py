"""Times generations of llama.cpp by the program that build.sh made.

Run: python -m bench.peers.llama_cpp.generation MODEL PROMPT_TOKENS NEW_TOKENS [THREADS] [SEQUENCES] [--isa NAME]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from array import array
from dataclasses import asdict
from pathlib import Path

from bench.peers.llama_cpp.llama_cpp import ISAS, NATIVE, program_path
from bench.timing import PeerError, Timing, Workload, parse_arguments

BUILD = Path(__file__).parents[3] / "build" / "peers" / "llama_cpp"
VERSION = re.compile(r"^readonly package=(\S+) version=(\S+)$", re.MULTILINE)
REPACKED = re.compile(r"(\w+) model buffer size\s*=\s*([0-9.]+) MiB")


def version() -> str:
    """The release that build.sh builds."""
    found = VERSION.search(Path(__file__).with_name("build.sh").read_text(encoding="utf-8"))
    assert found is not None, "build.sh names its release"
    return " ".join(found.groups())


def time_generation(options: argparse.Namespace, workload: Workload) -> Timing:
    """One timed greedy generation after a warm-up. Raises PeerError when the program fails."""
    program = program_path(options.build, "time_decode", options.isa)
    ids = array("i", [token_id for prompt in workload.prompts() for token_id in prompt])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.bin"
        path.write_bytes(ids.tobytes())
        numbers = (workload.num_new_tokens, options.threads, 1, workload.num_sequences)
        command = [str(program), options.model, str(path), *map(str, numbers)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise PeerError(f"{program.name} ended with {done.returncode}: {done.stderr[-2000:].strip()}")
    values = json.loads(done.stdout)
    buffers = ", ".join(f"{name} {size} MiB" for name, size in REPACKED.findall(done.stderr))
    return Timing(
        load_ms=values["load_ms"],
        prefill_ms=values["prefill_ms"],
        step_ms=tuple(values["step_ms"]),
        num_prompt_tokens=workload.num_prompt_tokens,
        num_new_tokens=workload.num_new_tokens,
        num_sequences=workload.num_sequences,
        peak_rss_bytes=values["peak_rss_bytes"],
        version=version(),
        system_info=f"{options.isa} build, {values['system_info']}buffers {buffers}",
    )


def main() -> None:
    """Time and print."""
    build = {"type": Path, "default": BUILD, "help": "work folder of build.sh"}
    isa = {"choices": ISAS, "default": NATIVE, "help": "which build of it"}
    print(json.dumps(asdict(time_generation(*parse_arguments(("--build", build), ("--isa", isa))))))


if __name__ == "__main__":
    main()
