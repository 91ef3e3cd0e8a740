"""Builds one portable wheel into dist/: for this processor architecture or across to another, for the running Python.

The compiler is that of the ziglang package: it links its C++ library into the extension and asks nothing of the C
library that GLIBC does not have, so the wheel installs on any Linux with that release or a later one. auditwheel checks
this and writes the tags. The same source compiles with the system's compiler too; such a build asks for the C and C++
libraries of the system it was built on.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GLIBC = "2.17"  # of 2012; numpy and tokenizers themselves ask for 2.17 to 2.28
ARCHITECTURES = ("x86_64", "aarch64")


def compiler(architecture: str) -> str:
    """The command that compiles C++ for a processor without any optional instruction set, and for an old C library.

    Raises SystemExit when the ziglang package is missing.
    """
    found = importlib.util.find_spec("ziglang")
    if found is None or found.origin is None:
        raise SystemExit("the compiler for portable wheels is not installed; pip install 'subsecond[wheel]'")
    return f"{Path(found.origin).parent / 'zig'} c++ -target {architecture}-linux-gnu.{GLIBC}"


def build_environment(architecture: str) -> dict[str, str]:
    """Environment of the build back end: compiler and, where this machine has another architecture, the target's names.

    A foreign target is compiled with the headers of the Python that runs this: those of CPython on Linux differ between
    64-bit architectures only in what the extension does not use.
    """
    tag = f"{sys.version_info.major}{sys.version_info.minor}"
    cmake = ["-DCMAKE_MODULE_LINKER_FLAGS=-s"]
    environment = dict(os.environ, CXX=compiler(architecture))
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    if architecture != platform.machine():
        cmake += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={architecture}"]
        environment["_PYTHON_HOST_PLATFORM"] = f"linux-{architecture}"
        environment["SETUPTOOLS_EXT_SUFFIX"] = f".cpython-{tag}-{architecture}-linux-gnu.so"
    environment["CMAKE_ARGS"] = " ".join(cmake)
    return environment


def build(architecture: str, output: Path) -> Path:
    """Build the wheel into `output` and return its path; raises CalledProcessError when a step fails."""
    environment = build_environment(architecture)
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    settings = {"build-dir": f"build/wheel-{tag}-{architecture}", "install.strip": "false"}
    options = [f"--config-settings={key}={value}" for key, value in settings.items()]
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
        pip += ["--no-build-isolation", "--no-deps", "--wheel-dir", folder, *options, str(ROOT)]
        subprocess.run(pip, check=True, env=environment, cwd=ROOT)
        (built,) = Path(folder).glob("*.whl")
        policy = f"manylinux_{GLIBC.replace('.', '_')}_{architecture}"
        audited = Path(folder) / "audited"
        audit = [sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", "-w", str(audited), str(built)]
        subprocess.run(audit, check=True, env=environment, capture_output=True)
        (wheel,) = audited.glob("*.whl")
        if policy not in wheel.name:
            raise SystemExit(f"{wheel.name} asks for a newer system than {policy}; auditwheel show says why")
        return wheel.replace(output / wheel.name)


def main() -> None:
    """Build and print the path of the wheel and its size."""
    parser = argparse.ArgumentParser(description="Build one portable wheel.")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default=platform.machine(), help="default: this one")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="default: dist/")
    args = parser.parse_args()
    try:
        wheel = build(args.architecture, args.output)
    except subprocess.CalledProcessError as error:
        sys.stderr.write((error.stderr or b"").decode(errors="replace"))
        raise SystemExit(f"{' '.join(map(str, error.cmd[:5]))} ... failed with status {error.returncode}") from None
    print(f"{wheel} ({wheel.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
