"""The wheel as a user gets it: in a new environment without a compiler, on this processor and on older ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.arch.source_tree import ROOT

ISAS = ("avx2", "scalar")
# A processor with AVX2, one without AVX and one without even SSE4, as qemu calls them, and the kernels for each.
OLD_PROCESSORS = (("Haswell", "avx2"), ("Nehalem", "scalar"), ("core2duo", "scalar"))


class Environment:
    """A virtual environment with the wheel; its commands find programs of this environment alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "venv/bin/python"

    def variables(self, **more: str) -> dict[str, str]:
        return {"PATH": str(self.python.parent), "HOME": str(self.folder), **more}

    def output(self, *arguments: str, prefix: tuple[str, ...] = (), variables: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            [*prefix, str(self.python), *arguments],
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
            cwd=self.folder,
            env=self.variables(**variables or {}),
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def doctor(self, prefix: tuple[str, ...] = (), **variables: str) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(
            self.output("-m", "subsecond", "doctor", "--json", prefix=prefix, variables=variables)
        )
        return report


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The portable wheel, built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "tools/wheel.py", "--output", str(folder)], check=True, cwd=ROOT, timeout=1800)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """A new environment with nothing but the wheel and what it asks for."""
    environment = Environment(tmp_path_factory.mktemp("clean"))
    venv.create(environment.folder / "venv", with_pip=True)
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    install = ["-m", "pip", "install", "--quiet", "--only-binary=:all:"]
    environment.output(*install, str(wheel), variables=pip)
    yield environment
    shutil.rmtree(environment.folder)


def isas_by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {isa["isa"]: isa for isa in report["native"]["instruction_sets"]}


@pytest.mark.acceptance
def test_the_wheel_is_portable_and_holds_no_sources(wheel: Path) -> None:
    assert "manylinux_2_17" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.endswith(".so")] and not [name for name in names if ".libs/" in name]
    faults = [
        name for name in names if name.endswith((".cpp", ".h", ".o", ".map")) or name.startswith(("tests", "bench"))
    ]
    assert not faults


@pytest.mark.acceptance
@pytest.mark.real_model
def test_a_clean_environment_without_a_compiler_answers(clean: Environment, smollm2_path: Path) -> None:
    for program in ("gcc", "cc", "c++", "clang", "cmake", "ninja"):
        assert shutil.which(program, path=clean.variables()["PATH"]) is None
    question = ("-m", "subsecond", "run", str(smollm2_path), "What is the capital of France?", "--max-tokens", "16")
    assert "Paris" in clean.output(*question)
    by_isa = [
        json.loads(clean.output(*question, "--json", variables={"SUBSECOND_ISA": isa}))["token_ids"] for isa in ISAS
    ]
    assert by_isa[0] == by_isa[1]


@pytest.mark.acceptance
def test_doctor_says_in_a_clean_environment_which_kernels_run(clean: Environment) -> None:
    report = clean.doctor()
    native = report["native"]
    assert set(native["kernels"].values()) == {native["chosen"]} and native["arithmetic"] in ("f32", "bf16")
    chosen = isas_by_name(report)[native["chosen"]]
    assert chosen["is_chosen"] and chosen["can_run"] and chosen["self_test"] == "passed"
    for isa in native["instruction_sets"]:
        assert isa["can_run"] != bool(isa["missing"]) and isa["reason"]
    forced = clean.doctor(SUBSECOND_ISA="scalar")["native"]
    assert (forced["chosen"], forced["forced_by"]) == ("scalar", "SUBSECOND_ISA")
    text = clean.output("-m", "subsecond", "doctor")
    assert f"kernels {native['chosen']}" in text and "self-test passed" in text


@pytest.mark.acceptance
@pytest.mark.parametrize(("processor", "expected"), OLD_PROCESSORS)
def test_an_older_processor_gets_the_kernels_it_can_run(clean: Environment, processor: str, expected: str) -> None:
    """Under emulation an instruction that the processor lacks ends the process."""
    qemu = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if qemu is None:
        pytest.skip("qemu-x86_64 is not installed: Debian has it in qemu-user-static")
    prefix = (qemu, "-cpu", processor)
    code = (
        "import json, subsecond; from subsecond import _native as n; isas = n.available_isas(); "
        "print(json.dumps([n.missing_features(), {isa: all(t[3] for t in n.self_test(isa)) for isa in isas}]))"
    )
    missing, has_passed = json.loads(clean.output("-c", code, prefix=prefix))
    assert has_passed == ({"avx2": True, "scalar": True} if expected == "avx2" else {"scalar": True})
    assert "amx_tile" in missing["amx"] and "avx512f" in missing["avx512"]
    assert ("avx2" in missing["avx2"]) == (expected == "scalar")
    if processor != "core2duo":  # numpy itself asks for more
        native = clean.doctor(prefix)["native"]
        assert native["chosen"] == expected
        assert "avx512f" in isas_by_name({"native": native})["avx512"]["reason"]


@pytest.mark.acceptance
def test_the_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path)],
        check=True,
        cwd=ROOT,
        timeout=600,
        capture_output=True,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
        sdist.extractall(tmp_path / "source", filter="data")
    assert {"README.md", "LICENSE", "CMakeLists.txt", "native/kernels.h", "native/exports.map"} <= names
    assert not [name for name in names if name.startswith((".ci", "bench/", "build/", "dist/")) or name.endswith(".so")]
    (source,) = (tmp_path / "source").iterdir()
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    subprocess.run(
        [*build, "--wheel-dir", str(tmp_path), str(source)], check=True, timeout=1800, env=dict(os.environ, PATH=path)
    )
    (rebuilt,) = tmp_path.glob("*.whl")
    portable, plain = (file_names(path) for path in (wheel, rebuilt))
    assert portable == plain


def file_names(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
