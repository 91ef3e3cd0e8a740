"""Code compiled for an optional instruction set never replaces code that every processor runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from tests.arch.source_tree import ROOT, report

ISA_FOLDERS = ("avx2", "avxvnni", "avx512", "avx512vnni", "amx")
X86_64 = (62).to_bytes(2, "little")  # the machine in the header of an object file
# What x86-64 has from its first processors on needs none of these registers, encodings and instructions.
OPTIONAL_INSTRUCTION = re.compile(
    r"%[yzt]mm\d|%k[0-7]\b|\tv(?!er[rw])\w+|"
    r"\t(?:popcnt|lzcnt|andn|bextr|bzhi|pdep|pext|mulx|rorx|s[ah][lr]x|movbe|pshufb)\w? "
)


def core_objects() -> list[Path]:
    """Return the x86-64 object files of the extension's core whose sources still exist, from every build folder."""
    found = (ROOT / "build").rglob("subsecond_core.dir/native/**/*.cpp.o")
    return sorted(path for path in found if source_of(path).is_file() and machine_of(path) == X86_64)


def machine_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(20)[18:]


def source_of(path: Path) -> Path:
    inside = path.as_posix().split("/subsecond_core.dir/", 1)[1]
    return ROOT / inside.removesuffix(".o")


def weak_functions(path: Path) -> set[str]:
    """Return the inline functions and template instances an object file defines, which the linker merges by name."""
    command = ["nm", "--defined-only", "--demangle", str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    rows = [line.split(maxsplit=2) for line in output.stdout.splitlines()]
    return {row[2] for row in rows if len(row) == 3 and row[1] == "W"}


def test_isa_objects_share_no_inline_function() -> None:
    """The linker keeps one copy of an inline function: were it the AVX-512 one, an older processor would stop on it."""
    objects = core_objects()
    if not objects:
        pytest.skip("no build folder with object files beside the sources: nothing to inspect")
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed: object files cannot be read")
    folders_by_symbol: dict[str, set[str]] = defaultdict(set)
    for path in objects:
        for symbol in weak_functions(path):
            folders_by_symbol[symbol].add(path.parent.name)
    faults = [
        f"{symbol} in {', '.join(sorted(folders))}"
        for symbol, folders in sorted(folders_by_symbol.items())
        if len(folders) > 1 and not folders.isdisjoint(ISA_FOLDERS)
    ]
    assert not faults, report("Inline functions and templates of an ISA folder live in its own namespace:", faults)


def test_code_outside_isa_folders_runs_on_every_processor() -> None:
    objects = [path for path in core_objects() if path.parent.name not in ISA_FOLDERS]
    if not objects:
        pytest.skip("no build folder with x86-64 object files beside the sources: nothing to inspect")
    if shutil.which("objdump") is None:
        pytest.skip("objdump (binutils) is not installed: object files cannot be read")
    faults = []
    for path in objects:
        command = ["objdump", "--disassemble", "--no-show-raw-insn", str(path)]
        output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
        found = [line.strip() for line in output.splitlines() if OPTIONAL_INSTRUCTION.search(line)]
        faults += [f"{source_of(path).relative_to(ROOT)}: {found[0]} and {len(found) - 1} more"] if found else []
    assert not faults, report("Instructions that not every x86-64 processor has:", faults)
