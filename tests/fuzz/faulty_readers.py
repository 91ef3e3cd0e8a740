"""Readers with the faults that a campaign has to find: wrong errors, hangs, crashes, waste of time and memory."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random

import numpy as np

from subsecond.core.errors import FormatError
from tests.fuzz.harnesses import Harness

FAULTY_BYTE = 3


def _byte(rng: Random) -> bytes:
    return bytes([rng.randrange(4)])


def _is_faulty(folder: Path) -> bool:
    return (folder / "input.bin").read_bytes()[0] == FAULTY_BYTE


def _wrong_error(folder: Path) -> None:
    if _is_faulty(folder):
        raise KeyError("missing")


def _right_error(folder: Path) -> None:
    raise FormatError("damaged")


def _crash(folder: Path) -> None:
    if _is_faulty(folder):
        os.abort()


def _hang(folder: Path) -> None:
    while _is_faulty(folder):
        time.sleep(0.1)


def _slow(folder: Path) -> None:
    end_s = time.process_time() + (0.3 if _is_faulty(folder) else 0.0)
    while time.process_time() < end_s:
        pass


def _wasteful(folder: Path) -> None:
    if _is_faulty(folder):
        np.empty(2**27, np.uint8)  # never touched


def _wordy(folder: Path) -> None:
    raise FormatError("a" * (5000 if _is_faulty(folder) else 50))


_FILES = ("input.bin",)
HARNESSES: Mapping[str, Harness] = {
    "right_error": Harness(_byte, _right_error, _FILES),
    "wrong_error": Harness(_byte, _wrong_error, _FILES),
    "crash": Harness(_byte, _crash, _FILES),
    "hang": Harness(_byte, _hang, _FILES),
    "slow": Harness(_byte, _slow, _FILES, max_cpu_s=0.2),
    "wasteful": Harness(_byte, _wasteful, _FILES),
    "wordy": Harness(_byte, _wordy, _FILES),
}
