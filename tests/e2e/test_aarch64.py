"""The extension on aarch64, compiled here and run under qemu: the bits of this processor, and a whole answer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.arch.source_tree import ROOT

pytestmark = pytest.mark.acceptance
ROOT_VARIABLE = "SUBSECOND_AARCH64_ROOT"
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_28_aarch64")


def required(names: tuple[str, ...], package: str) -> str:
    """Return the first of the programs that is installed, or skip the test."""
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.skip(f"none of {', '.join(names)} is installed: Debian has it in {package}")
    return found


def emulator() -> str:
    return required(("qemu-aarch64", "qemu-aarch64-static"), "qemu-user-static")


def kernel_digests(compiler: str, program: Path, *prefix: str) -> list[str]:
    """Compile the core of the extension with the scalar kernels alone, and return what its kernels compute."""
    sources = sorted(path for path in (ROOT / "native").glob("*.cpp") if not path.name.startswith("bindings"))
    sources += [*sorted((ROOT / "native/scalar").glob("*.cpp")), ROOT / "tests/native/kernel_digests.cpp"]
    flags = ["-std=c++20", "-O3", "-ffp-contract=off", "-static", "-Wall", "-Wextra", "-Werror", "-DSUBSECOND_X86=0"]
    command = [compiler, *flags, f"-I{ROOT / 'native'}", *map(str, sources), "-o", str(program)]
    subprocess.run(command, check=True, timeout=1800)
    done = subprocess.run([*prefix, str(program)], check=True, capture_output=True, text=True, timeout=600)
    return done.stdout.splitlines()


def test_the_scalar_kernels_give_the_same_bits_on_aarch64(tmp_path: Path) -> None:
    qemu = emulator()
    cross = required(("aarch64-linux-gnu-g++",), "g++-aarch64-linux-gnu")
    here = required(("g++", "c++", "clang++"), "g++")
    there = kernel_digests(cross, tmp_path / "aarch64", qemu)
    assert len(there) > 12 and all(line.startswith("scalar ") for line in there)
    assert not [line for line in there if line.endswith("failed")]
    assert there == kernel_digests(here, tmp_path / "here")


def test_the_wheel_for_aarch64_answers_as_the_one_for_x86(tmp_path: Path, smollm2_path: Path) -> None:
    qemu, root = emulator(), os.environ.get(ROOT_VARIABLE)
    if not root:
        pytest.skip(f"{ROOT_VARIABLE} names no Python for aarch64; tools/aarch64_root.sh FOLDER unpacks one")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = Path(root) / "usr/bin" / f"python{version}"
    if not python.exists():
        pytest.skip(f"{root} holds no Python {version}, which the wheel would be built for")
    build = [sys.executable, "tools/wheel.py", "--architecture", "aarch64", "--output", str(tmp_path / "dist")]
    subprocess.run(build, check=True, cwd=ROOT, timeout=1800)
    (wheel,) = (tmp_path / "dist").glob("*_aarch64.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--python-version", version]
    install += [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run([*install, "--target", str(site), str(wheel)], check=True, timeout=600)

    foreign = [qemu, "-L", root, "-E", f"PYTHONPATH={site}", str(python), "-m", "subsecond"]
    report = json.loads(output([*foreign, "doctor", "--json"], tmp_path))
    assert report["machine"]["architecture"] == "aarch64"
    (isa,) = report["native"]["instruction_sets"]
    assert (isa["isa"], isa["is_chosen"], isa["self_test"]) == ("scalar", True, "passed")

    question = ["run", str(smollm2_path), "The capital of France is", "--raw", "--max-tokens", "4", "--json"]
    here = json.loads(output([sys.executable, "-m", "subsecond", *question, "--isa", "scalar"], tmp_path))
    there = json.loads(output([*foreign, *question], tmp_path))
    assert "Paris" in there["text"]
    assert there["token_ids"] == here["token_ids"]


def output(command: list[str], home: Path) -> str:
    environment = dict(os.environ, HOME=str(home))
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False, env=environment)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout
