"""Runs the application on a socket: from the first byte it can answer to the last answer after a signal to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from subsecond.core.errors import InputError
from subsecond.serve.app import ServerApp
from subsecond.serve.connection import Connection
from subsecond.serve.settings import ServeSettings

BACKLOG = 1024
LAST_WORDS_S = 1  # after the drain, for connections to close by themselves
_log = logging.getLogger(__name__)


class HttpServer:
    """One server, to be run once. The first signal, or `stop`, drains it; the second ends it at once.

    `on_forced` is called at the second, in a program that has nothing else to do and can end without more ado.
    """

    def __init__(self, app: ServerApp, *, on_forced: Callable[[], None] = lambda: None) -> None:
        self.app = app
        self._on_forced = on_forced
        settings = app.context.settings
        self.socket = bound_socket(settings)
        self.address = _address(self.socket, settings)
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=round(settings.keep_alive_s),
            timeout_graceful_shutdown=LAST_WORDS_S,
            backlog=BACKLOG,
        )
        self._server = _SignalledServer(config, self.stop)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None
        self.is_forced = False

    def run(self, first: str | None, on_ready: Callable[[str], None]) -> None:
        """Serve until stopped; `on_ready` is called with the address once the model named `first` is loaded.

        Raises:
            SubsecondError: the first model could not be loaded.
        """
        with asyncio.Runner(loop_factory=self._server.config.get_loop_factory()) as runner:
            runner.run(self.serve(first, on_ready))

    async def serve(self, first: str | None, on_ready: Callable[[str], None]) -> None:
        """As `run`, on a loop that runs already."""
        self._loop = asyncio.get_running_loop()
        starting = asyncio.create_task(self._start(first, on_ready))
        try:
            await self._server.serve(sockets=[self.socket])
        finally:
            starting.cancel()
            await asyncio.wait({starting})
            self.socket.close()
            if self.app.context.settings.uds is not None:
                Path(self.app.context.settings.uds).unlink(missing_ok=True)
            if not self.is_forced:
                await self.app.context.registry.aclose()
        if not starting.cancelled():
            starting.result()

    def stop(self) -> None:
        """Begin to drain, or if that has begun end at once; from any thread, and from a signal handler."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so the server has ended
                self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._drain is None:
            lifecycle = self.app.context.lifecycle
            lifecycle.begin_draining()
            if lifecycle.num_running:
                _log.warning("stopping once %d requests are done; a second signal ends them", lifecycle.num_running)
            self._drain = asyncio.get_running_loop().create_task(self._drained())
        else:
            self.is_forced = True
            self._on_forced()
            self._server.should_exit = self._server.force_exit = True

    async def _drained(self) -> None:
        context = self.app.context
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(context.lifecycle.wait_idle(), context.settings.drain_timeout_s)
        self._server.should_exit = True

    async def _start(self, first: str | None, on_ready: Callable[[str], None]) -> None:
        """Load the first model while the server answers already that it is not ready."""
        context = self.app.context
        try:
            if first is not None:
                async with context.lease(first):
                    pass
            if context.lifecycle.phase == "starting":
                context.lifecycle.begin_serving()
                on_ready(self.address)
        except BaseException:
            self._server.should_exit = True
            raise


class _SignalledServer(uvicorn.Server):
    """Leaves what a signal means to its owner, and the process alive afterwards."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_signal = on_signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Called by the interpreter for each signal to stop."""
        self._on_signal()


def bound_socket(settings: ServeSettings) -> socket.socket:
    """Return a socket bound as the settings say; InputError where that cannot be."""
    if settings.uds is not None:
        return _unix_socket(Path(settings.uds))
    try:
        found = socket.getaddrinfo(settings.host.strip("[]"), settings.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, place = found[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"{settings.host} is no address of this machine: {error.strerror or error}") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
    except OSError as error:
        made.close()
        hint = (
            "another program listens there; give another --port" if error.errno == errno.EADDRINUSE else error.strerror
        )
        raise InputError(f"cannot listen on {settings.host} port {settings.port}: {hint}") from error
    made.setblocking(False)
    return made


def _unix_socket(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            try:
                made.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()  # left behind by a server that is gone
            else:
                raise InputError(f"another server listens on {path}; give another --uds")
            made.close()
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.bind(str(path))
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    except OSError as error:
        made.close()
        raise InputError(f"cannot listen on {path}: {error.strerror or error}; give another --uds") from error
    except InputError:
        made.close()
        raise
    made.setblocking(False)
    return made


def _address(bound: socket.socket, settings: ServeSettings) -> str:
    if settings.uds is not None:
        return f"unix:{settings.uds}"
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
