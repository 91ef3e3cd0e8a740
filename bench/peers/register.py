"""Makes the engines that are installed in build/peers known to `subsecond bench --against`, with what they are.

Run from the repository: python -m bench.peers.register
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

from bench.engines import ENGINES, OURS
from bench.models import PEERS, ROOT
from bench.serving.commands import SERVED
from bench.timing import PeerError
from subsecond.formats.whole_file import write_whole
from subsecond.measure.peers import registry_path

PACKAGES = {"openvino": "openvino-genai", "ctranslate2": "ctranslate2", "transformers": "transformers"}


def version_of(engine: str) -> str:
    """The version that is installed; PeerError if none is."""
    if engine == "llama.cpp":
        script = (ROOT / "bench" / "peers" / "llama_cpp" / "build.sh").read_text(encoding="utf-8")
        found = re.search(r"version=([\d.]+)", script)
        return f"of llama-cpp-python {found[1]}" if found else "unknown"
    python = ENGINES[engine].command(ENGINES[engine].weights[0], None).argv[0]
    code = f"import importlib.metadata as m; print(m.version({PACKAGES[engine]!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def entry_of(engine: str) -> dict[str, object]:
    """What the product is told of an engine; PeerError if it is not installed."""
    if engine == "llama.cpp":
        program = PEERS / "llama_cpp" / "native" / "bin" / "llama-server"
        if not any((PEERS / "llama_cpp").rglob("llama-server")):
            raise PeerError(f"{program} is missing; run: make peers PEER=llama_server")
    return {
        "command": [sys.executable, "-m", "bench.peers.serve"],
        "folder": str(ROOT),
        "version": version_of(engine),
        "weights": [name for name in ENGINES[engine].weights if name],
        "build": "compiled natively for this processor" if engine == "llama.cpp" else "as its package is published",
    }


def main() -> None:
    """Write the list anew."""
    found = {}
    for engine in SERVED:
        if engine == OURS:
            continue
        try:
            found[engine] = entry_of(engine)
        except (PeerError, OSError, subprocess.CalledProcessError) as error:
            print(f"{engine}: left out, {error}", file=sys.stderr)
    write_whole(registry_path(), json.dumps({"peers": found}, indent=1).encode())
    print(f"{registry_path()}: {', '.join(found) or 'none'}", file=sys.stderr)


if __name__ == "__main__":
    main()
