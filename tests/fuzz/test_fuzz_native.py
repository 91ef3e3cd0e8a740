"""The native targets under AddressSanitizer and UBSan: packing, kernels of every set that runs here, sampler, executor.

Without a compiler that has sanitizers the test fails: native code that takes numbers from files is not to be released
unfuzzed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import native_targets
from tests.fuzz.native_targets import TARGETS, Toolchain

FOLDER = Path(__file__).resolve().parents[2] / "build" / "fuzz_native"
NUM_INPUTS = {"linear": 2_000, "attention": 4_000, "sampler": 100_000, "executor": 5_000}
"""Sized to take some minutes a target on two cores."""


@pytest.fixture(scope="module")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> Toolchain:
    found = native_targets.find_toolchain(tmp_path_factory.mktemp("toolchain"))
    assert found is not None, "install clang++ (with compiler-rt) or g++ with libasan and libubsan"
    return found


@pytest.mark.acceptance
@pytest.mark.parametrize("target", TARGETS)
def test_native_target(target: str, toolchain: Toolchain, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nfuzzing {target}: {NUM_INPUTS[target]:,} inputs, {toolchain.description}", flush=True)  # noqa: T201
    program = native_targets.build(toolchain, FOLDER)[target]
    done = native_targets.run(program, NUM_INPUTS[target], FOLDER / "corpus" / target)
    assert done.returncode == 0, done.stderr[-6000:]
    assert "Done" in done.stderr + done.stdout


def test_instruction_sets_are_compiled_as_in_the_product() -> None:
    """The flags come from CMakeLists.txt; a folder of kernels without any would be left out of the targets."""
    flags = native_targets.isa_flags()
    folders = {path.parent.name for path in native_targets.NATIVE.glob("*/*.cpp")}
    assert folders - set(flags) == {"scalar"}
    assert all(flags.values())
    assert not any("$" in flag for each in flags.values() for flag in each)
