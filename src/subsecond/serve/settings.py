"""Settings of the server: where it listens, who may ask, and the bounds on what a request may cost."""

from __future__ import annotations

from dataclasses import dataclass

from subsecond.core.errors import InputError
from subsecond.core.settings import setting, validate

MB = 10**6


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """How the server runs. Keys themselves are no setting: they come from a file or the environment."""

    host: str = setting("127.0.0.1", "address to listen on; any other than this machine's own needs API keys")
    port: int = setting(8000, "port to listen on; 0 takes a free one", minimum=0, maximum=65535)
    uds: str | None = setting(None, "path of a Unix socket to listen on instead of host and port")
    api_key_file: str | None = setting(
        None, "file with API keys, one a line: a name and a key; SUBSECOND_API_KEYS holds such lines too"
    )
    allowed_hosts: tuple[str, ...] = setting((), "further name that requests may give as Host")
    allowed_origins: tuple[str, ...] = setting(
        (), "web origin whose pages may call this server, as https://example.org"
    )
    access_log: bool = setting(False, "log a line for each request: tenant, path, status and time, never its text")
    max_body_bytes: int = setting(8 * MB, "largest request body", minimum=1024, maximum=1000 * MB)
    max_total_body_bytes: int = setting(
        64 * MB, "most bytes of all request bodies in memory, the first 64 KiB of each aside", minimum=0, maximum=10**12
    )
    body_timeout_s: float = setting(
        30.0, "seconds within which a request's head, and then its body, has to arrive", minimum=0.1, maximum=3600
    )
    write_timeout_s: float = setting(
        60.0, "seconds after which a client that takes nothing of its answer is given up", minimum=0.1, maximum=3600
    )
    keep_alive_s: float = setting(75.0, "seconds that an idle connection is kept", minimum=1, maximum=3600)
    max_connections: int = setting(1024, "most open connections", minimum=1, maximum=10**6)
    max_requests: int = setting(
        256, "most requests at once, running and waiting; further ones get status 429", minimum=1, maximum=10**6
    )
    max_samples: int = setting(64, "most answers of one request (n)", minimum=1, maximum=10**4)
    max_answer_tokens: int = setting(
        2**20, "most tokens of all answers of one request, n times max_tokens", minimum=1, maximum=2**31 - 1
    )
    max_inputs: int = setting(2048, "most texts of one request for embeddings", minimum=1, maximum=10**5)
    memory_budget_mb: int | None = setting(
        None, "most memory for weights and key/value blocks of all loaded models, in MB", minimum=1, maximum=10**9
    )
    load_timeout_s: float = setting(
        600.0, "seconds that a request waits for its model to be loaded", minimum=0.1, maximum=86400
    )
    stall_timeout_s: float = setting(
        120.0, "seconds of one step after which the server reports that it is not ready", minimum=0.1, maximum=86400
    )
    drain_timeout_s: float = setting(
        30.0, "seconds that running requests have to finish after the first signal to stop", minimum=0, maximum=86400
    )

    def __post_init__(self) -> None:
        validate(self)
        if not self.host:
            raise InputError("host is empty; give an address, for example 127.0.0.1, or 0.0.0.0 for every one")

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can connect."""
        if self.uds is not None or self.host == "localhost":
            return True
        import ipaddress  # here because the parser of the command line needs the fields alone

        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def memory_budget_bytes(self) -> int | None:
        """The memory budget in bytes; None for no bound."""
        return None if self.memory_budget_mb is None else self.memory_budget_mb * MB
