"""Converts a Hugging Face folder for CTranslate2; runs in the environment of the converters.

Run: python -m bench.peers.ctranslate2.convert FOLDER OUTPUT int8
"""

from __future__ import annotations

import sys

from ctranslate2.converters import TransformersConverter


def main() -> None:
    """Convert one folder."""
    folder, output, weights = sys.argv[1:]
    TransformersConverter(folder, low_cpu_mem_usage=True).convert(output, quantization=weights)


if __name__ == "__main__":
    main()
