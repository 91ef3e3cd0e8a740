"""A server of OpenAI's completions API as a target of benchmarks: ours, another engine's, or any at a URL.

Answers are streamed. What counts as a token's time is the arrival of the event with its text or id; several tokens may
come in one event, so how many there were is what the server says at the end.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from typing import Any

from subsecond.measure import process_reading
from subsecond.measure.http_exchange import Origin, Response, exchange
from subsecond.measure.target import Reading, TargetError, Trace

MAX_ERROR_CHARS = 500
MAX_EVENT_BYTES = 2**24
MAX_JSON_BYTES = 2**24
PROBE_TIMEOUT_S = 600.0  # the first answer may have to wait for the model
PROBE_IDS = range(100, 132)  # ordinary tokens of small vocabularies too
PROBE_WORDS = 32
REFUSALS = (400, 404, 415, 422, 500, 501)  # statuses of servers that do not know a field or a kind of prompt
_METRIC = re.compile(r"^(?P<name>[\w:]+)(?:\{(?P<labels>[^}]*)\})? (?P<value>[-+.\deE]+)", re.MULTILINE)
_USED = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_OPEN = ("vllm:num_requests_running", "vllm:num_requests_waiting")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a server is sent: prompts as ids or as text, with the fields that OpenAI's API itself lacks or without."""

    has_ids: bool
    has_extras: bool


SHAPES = (Shape(True, True), Shape(False, True), Shape(True, False), Shape(False, False))


class HttpTarget:
    """Asks a server. Implements `Target`.

    model    name of the model to ask for; None takes the first that the server lists
    pid      process of the server where it is known, for memory and processor time
    facts    what else is known of it, as JSON data for its description
    """

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        pid: int | None = None,
        timeout_s: float = PROBE_TIMEOUT_S,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = url if name is None else name
        self._url = url
        self._origin = Origin.parse(url)
        self._model = model
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._pid = pid
        self._facts = facts or {}
        self._timeout_s = timeout_s
        self._shape: Shape | None = None
        self._server = ""
        self._words: tuple[str, ...] = ()
        self._tokens_per_word = 1.0
        self.is_in_process = False
        self.is_local = pid is not None or self._origin.is_loopback

    @property
    def description(self) -> Mapping[str, Any]:
        """Kind, address, model, and in which form it is asked."""
        shape = self._shape
        return {
            "kind": "server",
            "url": self._url,
            "model": self._model,
            "server": self._server or None,
            "prompts": None if shape is None else "token ids" if shape.has_ids else "text",
            "ends_answers_early": None if shape is None else not shape.has_extras,
            **self._facts,
        }

    async def prepare(self) -> None:
        """Find the model, and the form of request that the server understands."""
        if self._model is None:
            self._model = await self._first_model()
        refusals: list[str] = []
        for shape in SHAPES:
            self._shape = shape
            trace = Trace()
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._stream(_probe(shape), 2, trace)
            except TimeoutError:
                raise TargetError(f"{self._url} gave no answer within {self._timeout_s:g} s") from None
            except _RefusedError as refusal:
                refusals.append(str(refusal))
                continue
            if not shape.has_ids and trace.num_prompt_tokens:
                self._tokens_per_word = trace.num_prompt_tokens / PROBE_WORDS
            return
        self._shape = None
        raise TargetError(f"{self._url} refuses completions: {refusals[0]}")

    async def ask(self, prompt_ids: tuple[int, ...], num_new_tokens: int) -> Trace:
        """Stream one answer."""
        trace = Trace(start_s=time.perf_counter(), num_prompt_tokens=len(prompt_ids))
        assert self._shape is not None, "a target is prepared before it is asked"
        prompt = list(prompt_ids) if self._shape.has_ids else self.text_of(prompt_ids)
        await self._stream(prompt, num_new_tokens, trace)
        return trace

    async def reading(self) -> Reading:
        """Memory and processor time where the process is known, counts where the server has metrics of known names."""
        cpu_s, resident, peak = None, None, None
        if self._pid is not None:
            cpu_s = process_reading.cpu_seconds(self._pid)
            resident, peak = process_reading.memory_bytes(self._pid)
        used, num_open = None, None
        with suppress(TargetError, UnicodeDecodeError):
            async with exchange(self._origin, "GET", "/metrics", headers=self._headers) as response:
                if response.status == 200:
                    used, num_open = self._counts((await response.read(MAX_JSON_BYTES)).decode())
        return Reading(cpu_s, resident, peak, num_open, kv_usage_ratio=used)

    def reset_peak(self) -> None:
        """Begin to count the process's peak anew where it is known."""
        if self._pid is not None:
            process_reading.reset_peak(self._pid)

    def pause(self) -> None:
        """A server is left alone; who has started it may hold it."""

    def resume(self) -> None:
        """Nothing was stopped."""

    def text_of(self, prompt_ids: Sequence[int]) -> str:
        """About as many tokens of text, words of a passage that follow from the ids: equal beginnings stay equal."""
        if not self._words:
            self._words = passage_words()
        num_words = max(1, round(len(prompt_ids) / self._tokens_per_word))
        ids = [prompt_ids[index % len(prompt_ids)] for index in range(num_words)]
        return " ".join(self._words[token_id % len(self._words)] for token_id in ids)

    def _body(self, prompt: str | list[int], num_new_tokens: int) -> bytes:
        assert self._shape is not None
        content: dict[str, Any] = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": num_new_tokens,
            "temperature": 0,
            "stream": True,
        }
        if self._shape.has_extras:
            content |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
        return json.dumps(content, separators=(",", ":")).encode()

    async def _stream(self, prompt: str | list[int], num_new_tokens: int, trace: Trace) -> None:
        body = self._body(prompt, num_new_tokens)
        async with exchange(self._origin, "POST", "/v1/completions", body, self._headers) as response:
            if response.status != 200:
                reason = (await response.read(MAX_ERROR_CHARS)).decode(errors="replace")
                kind = _RefusedError if response.status in REFUSALS else TargetError
                raise kind(f"status {response.status}: {reason}")
            await _read_events(response, trace)
        if not trace.num_new_tokens:
            trace.num_new_tokens = len(trace.stamps_s)
        if not trace.stamps_s:
            raise TargetError(f"{num_new_tokens} tokens came without text or token ids, so they cannot be timed")

    async def _first_model(self) -> str:
        async with exchange(self._origin, "GET", "/v1/models", headers=self._headers) as response:
            content = await response.read(MAX_JSON_BYTES)
            self._server = response.headers.get("server", "")
            if response.status != 200:
                reason = content.decode(errors="replace")[:MAX_ERROR_CHARS]
                hint = "; set SUBSECOND_API_KEY" if response.status in (401, 403) else ""
                raise TargetError(f"{self._url} does not list its models: status {response.status}: {reason}{hint}")
        try:
            return str(json.loads(content)["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise TargetError(f"{self._url} lists no model; load one, or name it: {self._url}#MODEL") from None

    def _counts(self, text: str) -> tuple[float | None, int | None]:
        """Share of the key/value blocks in use and open requests of the model, from metrics."""
        found: dict[str, float] = {}
        for match in _METRIC.finditer(text):
            labels = match["labels"] or ""
            if match["name"] in (*_USED, *_OPEN) and (
                "model_name=" not in labels or f'model_name="{self._model}"' in labels
            ):
                with suppress(ValueError):
                    found[match["name"]] = float(match["value"])
        used = next((found[name] for name in _USED if name in found), None)
        opened = [found[name] for name in _OPEN if name in found]
        return used, int(sum(opened)) if opened else None


class _RefusedError(TargetError):
    """The server does not take such a request."""


def passage_words() -> tuple[str, ...]:
    """The words of a passage whose copyright has ended (Moby-Dick, 1851), which ships with the package."""
    return tuple(resources.files("subsecond.measure").joinpath("passage.txt").read_text(encoding="utf-8").split())


def _probe(shape: Shape) -> str | list[int]:
    return list(PROBE_IDS) if shape.has_ids else " ".join(passage_words()[:PROBE_WORDS])


async def _read_events(response: Response, trace: Trace) -> None:
    """Take server-sent events to their end; all events of one piece get one time."""
    rest, has_ended = b"", False
    async for piece in response.pieces():
        now = time.perf_counter()
        *events, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        if len(rest) > MAX_EVENT_BYTES:
            raise TargetError(f"an event of more than {MAX_EVENT_BYTES} bytes in the stream")
        for event in events:
            data = b"".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:")).strip()
            if data == b"[DONE]":
                return
            if data:
                has_ended |= _take(data, now, trace)
    if not has_ended:
        reason = rest.decode(errors="replace")[:MAX_ERROR_CHARS] or "no reason given"
        raise TargetError(f"the stream ended without a finish reason: {reason}")


def _take(data: bytes, now_s: float, trace: Trace) -> bool:
    """Take one event; True when it ends the answer."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise TargetError(f"an event that is no JSON: {data[:100]!r}") from None
    if not isinstance(found, dict):
        raise TargetError(f"an event that is no object: {data[:100]!r}")
    if found.get("error"):
        raise TargetError(f"error in the stream: {str(found['error'])[:MAX_ERROR_CHARS]}")
    has_ended = False
    for choice in found.get("choices") or ():
        if choice.get("text") or choice.get("token_ids"):
            trace.stamps_s.append(now_s)
        has_ended |= bool(choice.get("finish_reason"))
    usage = found.get("usage")
    if isinstance(usage, dict):
        trace.num_prompt_tokens = int(usage.get("prompt_tokens") or 0)
        trace.num_new_tokens = int(usage.get("completion_tokens") or 0)
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        trace.num_cached_tokens = int(cached) if cached is not None else None
    return has_ended
