"""Converts a Hugging Face folder for OpenVINO GenAI; runs in the environment of the converters.

Run: python -m bench.peers.openvino.convert FOLDER OUTPUT fp16|int8|int4
int8 has a scale a channel, int4 one for 64 weights without a zero point, with embedding and output in int8; the rest is
what OpenVINO does unless told otherwise.
"""

from __future__ import annotations

import subprocess
import sys

PROGRAM = [sys.executable, "-m", "optimum.commands.optimum_cli"]
FLAGS = {
    "fp16": ["--weight-format", "fp16"],
    "int8": ["--weight-format", "int8"],
    "int4": ["--weight-format", "int4", "--sym", "--group-size", "64", "--ratio", "1.0"],
}


def main() -> None:
    """Convert one folder."""
    folder, output, weights = sys.argv[1:]
    task = ["export", "openvino", "--task", "text-generation-with-past", "--model", folder]
    sys.exit(subprocess.run([*PROGRAM, *task, *FLAGS[weights], output], check=False).returncode)


if __name__ == "__main__":
    main()
