"""Has grammars tried in a process of its own, and tells from its end what was wrong with one."""

from __future__ import annotations

import atexit
import json
import selectors
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import lru_cache

from subsecond.core.errors import InputError, ResourceError
from subsecond.engine.grammar.costs import GrammarLimits

MAX_WAIT_S = 60.0
"""Longest wait for an answer by the clock; processor time is what is limited, and others may use the processor too."""

_MODULE = "subsecond.engine.grammar.vetting"


class Vetter:
    """Tries grammars one at a time. The process is started at the first and again after one that ended it."""

    def __init__(self, limits: GrammarLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        atexit.register(self.close)

    def check(self, grammar: str, *, is_gbnf: bool = False) -> str:
        """Return the grammar as Lark text, now that it is known to be sound.

        Raises:
            InputError: it is damaged, no answer can satisfy it, or it takes too much time, memory or depth.
            ResourceError: the process cannot be started, or gives no answer.
        """
        with self._lock:
            answer = self._ask(json.dumps({"grammar": grammar, "is_gbnf": is_gbnf}))
        if answer["fault"]:
            raise InputError(answer["fault"])
        return answer["lark"]

    def fault_of(self, grammar: str) -> str:
        """What is wrong with a grammar; empty when nothing is."""
        try:
            self.check(grammar)
        except InputError as error:
            return str(error)
        return ""

    def close(self) -> None:
        """End the process; it is started again when needed."""
        with self._lock:
            self._end()

    def _ask(self, line: str) -> dict[str, str]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                is_hanging = not selector.select(MAX_WAIT_S)
            text = "" if is_hanging else process.stdout.readline()
        except OSError:
            is_hanging, text = False, ""
        if text.endswith("\n"):
            answer: dict[str, str] = json.loads(text)
            return answer
        code, limits = self._end(), self._limits
        if is_hanging:
            raise ResourceError(f"the process that tries output formats gave no answer in {MAX_WAIT_S:g} s; try again")
        if code == -signal.SIGPROF:
            raise InputError(f"it takes more than {limits.max_compile_s:g} s to compile; make it simpler")
        raise InputError(
            f"it nests too deeply, or needs more than {limits.max_compile_bytes >> 20} MiB to compile; make it simpler"
        )

    def _start(self) -> subprocess.Popen[str]:
        limits = self._limits
        try:
            return subprocess.Popen(
                # -P: the folder that the server runs in is none to import from
                [
                    sys.executable or "python3",
                    "-P",
                    "-m",
                    _MODULE,
                    str(limits.max_compile_s),
                    str(limits.max_compile_bytes),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # so that an interrupt at the keyboard is the server's to deal with
            )
        except OSError as error:
            raise ResourceError(f"cannot start the process that tries grammars: {error}") from error

    def _end(self) -> int | None:
        """End the process if there is one; return how it ended."""
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError):
            process.stdin.close()  # which ends one that waits
        try:
            code = process.wait(1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        process.stdout.close()
        return code


@lru_cache(maxsize=4)
def shared_vetter(limits: GrammarLimits) -> Vetter:
    """One for all models with the same limits."""
    return Vetter(limits)
