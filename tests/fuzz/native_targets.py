"""Builds the native fuzz targets with AddressSanitizer and UBSan, straight from the sources, and runs them.

clang brings libFuzzer and its coverage guidance. Without clang the same targets run on generated inputs under g++'s
sanitizers, which the report says.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "native"
SOURCES = Path(__file__).resolve().parent / "native"
TARGETS = ("linear", "attention", "sampler", "executor")

# Float divisions by zero and overflowing conversions to float are defined by IEEE 754; the kernels rely on them.
_SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
_FLAGS = ("-std=c++20", "-O1", "-g1", "-ffp-contract=off", "-w", "-pthread", f"-I{NATIVE}")


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A compiler and whether it brings libFuzzer."""

    compiler: str
    has_fuzzer: bool

    @property
    def description(self) -> str:
        """For reports."""
        how = "libFuzzer" if self.has_fuzzer else "generated inputs, as there is no clang++ with libFuzzer"
        return f"{self.compiler}, {how}"


def find_toolchain(folder: Path) -> Toolchain | None:
    """clang++ with libFuzzer, or g++, or None when neither compiles with sanitizers."""
    probe = folder / "probe.cpp"
    probe.write_text('extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }\n')
    for compiler in filter(None, (shutil.which("clang++"), shutil.which("g++"))):
        has_fuzzer = "clang" in compiler
        sources = [str(probe)] if has_fuzzer else [str(probe), str(SOURCES / "standalone.cpp")]
        fuzzer = ["-fsanitize=fuzzer"] if has_fuzzer else []
        command = [compiler, "-std=c++20", *_SANITIZE, *fuzzer, *sources, "-o", str(folder / "probe")]
        if subprocess.run(command, capture_output=True).returncode == 0:
            return Toolchain(compiler, has_fuzzer)
    return None


def build(toolchain: Toolchain, folder: Path) -> dict[str, Path]:
    """Compile the core of the extension and every target into `folder`; nothing when no source has changed since."""
    folder.mkdir(parents=True, exist_ok=True)
    programs = {target: folder / f"fuzz_{target}" for target in TARGETS}
    stamp, digest = folder / "sources.txt", _digest(toolchain)
    if stamp.is_file() and stamp.read_text() == digest:
        return programs
    fuzzer = ["-fsanitize=fuzzer-no-link"] if toolchain.has_fuzzer else []
    is_x86 = os.uname().machine == "x86_64"
    flags_by_isa = isa_flags() if is_x86 else {}
    compile_only = [toolchain.compiler, "-c", *_FLAGS, *_SANITIZE, *fuzzer, f"-DSUBSECOND_X86={int(is_x86)}"]
    commands, objects = [], []
    for source in sorted([*NATIVE.glob("*.cpp"), *NATIVE.glob("*/*.cpp")]):
        isa = source.parent.name
        if source.name.startswith("bindings") or (isa not in ("native", "scalar") and isa not in flags_by_isa):
            continue
        objects.append(str(folder / f"{isa}_{source.stem}.o"))
        commands.append([*compile_only, *flags_by_isa.get(isa, ()), str(source), "-o", objects[-1]])
    link = ["-fsanitize=fuzzer"] if toolchain.has_fuzzer else [str(SOURCES / "standalone.cpp")]
    compiler = [toolchain.compiler, *_FLAGS, *_SANITIZE, *link]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(_run, commands))
        targets = [[*compiler, str(SOURCES / f"{path.name}.cpp"), "-o", str(path)] for path in programs.values()]
        list(pool.map(_run, [[*command[:-2], *objects, *command[-2:]] for command in targets]))
    stamp.write_text(digest)
    return programs


def _digest(toolchain: Toolchain) -> str:
    sources = [path for folder in (NATIVE, SOURCES) for path in sorted(folder.rglob("*")) if path.is_file()]
    content = b"".join(path.read_bytes() for path in (*sources, ROOT / "CMakeLists.txt", Path(__file__)))
    return hashlib.sha256(toolchain.compiler.encode() + content).hexdigest()


def isa_flags() -> dict[str, list[str]]:
    """Compiler flags of each folder of x86 kernels, as CMakeLists.txt sets them.

    What it appends for some compilers alone are warnings, which the targets switch off; anything else would be missed.
    """
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    flags: dict[str, list[str]] = {}
    for name, value in re.findall(r"list\(APPEND (\w+)_flags\s+([^)]*)\)", text):
        assert all(part.startswith("-W") for part in value.split()), f"{name} gets {value} under a condition"
    for name, value in re.findall(r"set\((\w+)_flags\s+([^)]*)\)", text):
        parts: list[str] = []
        for part in value.split():
            inherited = re.fullmatch(r"\$\{(\w+)_flags\}", part)
            parts += flags[inherited[1]] if inherited else [part]
        flags[name] = parts
    return flags


def run(program: Path, num_inputs: int, corpus: Path) -> subprocess.CompletedProcess[str]:
    """Run a target; a finding ends it with a non-zero code and a report. New inputs are kept in `corpus`."""
    corpus.mkdir(parents=True, exist_ok=True)
    command = [str(program), f"-runs={num_inputs}", "-seed=1", "-max_len=256", "-len_control=0", "-timeout=20"]
    return subprocess.run(
        [*command, f"-artifact_prefix={corpus.parent}/{program.name}_", str(corpus)],
        capture_output=True,
        text=True,
        env=os.environ | {"UBSAN_OPTIONS": "print_stacktrace=1"},
    )


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"
