"""The AMX kernels on a processor without AMX: the extension is built with emulated tiles, and their own tests run."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from subsecond import _native

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif("amx" in _native.available_isas(), reason="this processor has AMX, and its tests run on it"),
    pytest.mark.skipif("avx512vnni" not in _native.available_isas(), reason="emulated tiles need AVX-512 beside them"),
]
ROOT = Path(__file__).parents[2]
TESTS = (
    "test_kernels.py",
    "test_attention_kernels.py",
    "test_attention_int8.py",
    "test_channel_kernels.py",
    "test_nested_formats.py",
    "test_sparse_kernels.py",
    "test_native_backend.py",
)
# Without `site`, no path file of this environment puts the installed package before the emulated one.
RUN = """
import sys
sys.path[:0] = sys.argv[1:4]
import pytest
from subsecond import _native
assert _native.available_isas()[0] == "amx", _native.missing_features()["amx"]
sys.exit(pytest.main([*sys.argv[4:], "-q", "-p", "no:cacheprovider", "-k", "amx or bf16"]))
"""


def test_the_kernels_pass_their_tests(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps"]
    command += [f"--target={site}", f"--config-settings=build-dir={tmp_path / 'build'}"]
    command += ["--config-settings=cmake.define.SUBSECOND_EMULATE_AMX=ON", str(ROOT)]
    subprocess.run(command, check=True)
    tests = [str(ROOT / "tests" / "parity" / name) for name in TESTS]
    paths = [str(site), str(ROOT), sysconfig.get_path("purelib")]
    done = subprocess.run(
        [sys.executable, "-S", "-c", RUN, *paths, *tests], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
