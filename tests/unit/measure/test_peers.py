"""Other engines are found by the registry, started, waited for and ended."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from subsecond.core.errors import FormatError, InputError
from subsecond.measure.peers import find_peer, peer_server, registered_peers, registry_path
from subsecond.measure.target import TargetError

SERVER = """
import http.server, json, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(sys.argv[1:]).encode())
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
ENTRY: dict[str, Any] = {
    "command": [sys.executable, "-c", SERVER],
    "folder": ".",
    "version": "1.2",
    "build": "as published",
    "weights": ["int4", "int8"],
}
LIMITS: dict[str, Any] = {"num_threads": 2, "num_streams": 3, "context_tokens": 64, "timeout_s": 120.0}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path))


def register(**entries: Any) -> None:
    registry_path().parent.mkdir(parents=True, exist_ok=True)
    registry_path().write_text(json.dumps({"peers": {name: {**ENTRY, **entry} for name, entry in entries.items()}}))


def test_a_peer_is_found_with_what_it_is() -> None:
    register(other={}, quick={"version": "3"})
    assert list(registered_peers()) == ["other", "quick"]
    peer = find_peer("quick:int8")
    assert (peer.name, peer.version, peer.build, peer.weights) == ("quick", "3", "as published", ("int4", "int8"))


def test_an_unknown_peer_is_told_what_there_is() -> None:
    with pytest.raises(InputError, match=r"'slow' is no address and no engine .*: none is registered; .*`make peers`"):
        find_peer("slow")
    register(other={})
    with pytest.raises(InputError, match="registered are other"):
        find_peer("slow")
    with pytest.raises(InputError, match="weights of other are int4, int8"):
        find_peer("other:int2")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"command": []}, "command is empty"),
        ({"command": [1]}, "command holds something else than texts"),
        ({"command": "python"}, "field 'command'"),
        ({"version": 3}, "field 'version'"),
        ({"weights": None}, "field 'weights'"),
    ],
)
def test_a_damaged_registry_is_an_error(entry: dict[str, Any], reason: str) -> None:
    register(other=entry)
    with pytest.raises(FormatError, match=reason):
        registered_peers()


def test_a_server_is_told_its_model_and_ended_with_the_block(tmp_path: Path) -> None:
    register(other={"folder": str(tmp_path)})
    with peer_server("other:int8", Path("m.gguf"), **LIMITS) as (address, pid):
        told = json.load(urllib.request.urlopen(f"{address}/health"))
        assert told[:2] == ["other:int8", "m.gguf"]
        flags = dict(zip(told[2::2], told[3::2], strict=True))
        assert flags == {
            "--port": address.rpartition(":")[2],
            "--threads": "2",
            "--streams": "3",
            "--context-tokens": "64",
        }
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()


def test_a_server_that_ends_is_told_with_its_reason() -> None:
    register(other={"command": [sys.executable, "-c", "import sys; sys.exit('no such model')"]})
    with pytest.raises(TargetError, match=r"ended with 1: no such model"), peer_server("other", Path("m"), **LIMITS):
        pass


def test_a_server_that_is_never_ready_is_given_up() -> None:
    register(other={"command": [sys.executable, "-c", "import time; time.sleep(60)"]})
    limits = {**LIMITS, "timeout_s": 0.5}
    with pytest.raises(TargetError, match="was not ready after"), peer_server("other", Path("m"), **limits):
        pass
