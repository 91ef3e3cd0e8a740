"""Whether the server says truly that it lives and that it can answer."""

from __future__ import annotations

import httpx

from tests.contract.serve.live_server import LiveServer, ScriptedLoader


def test_ready_follows_the_first_model(client: httpx.Client) -> None:
    assert client.get("/health/live").json() == {"status": "live", "reason": None}
    assert client.get("/health/ready").json() == {"status": "ready", "reason": None}


def test_not_ready_while_the_first_model_is_loaded() -> None:
    loader = ScriptedLoader()
    loader.hold.clear()
    with LiveServer(loader=loader, is_ready=False) as live, live.client() as client:
        while True:
            try:
                response = client.get("/health/ready")
                break
            except httpx.ConnectError:
                continue
        assert response.status_code == 503
        assert response.json() == {"status": "not ready", "reason": "the first model is being loaded"}
        assert client.get("/health/live").status_code == 200
        loader.hold.set()
        live.wait_ready()
        assert client.get("/health/ready").status_code == 200
