"""A model without weights that answers as tests tell it to, on the engine and the sampler that real models have.

What it says is decided by its prompt: the text after the last "say " is repeated, scripts can be added by key, and
"random" asks for letters that depend on everything before them.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from subsecond.backends.batch import Float32, ForwardBatch, SampleBatch, SampleResult
from subsecond.backends.sampling import sample
from subsecond.engine.local import LocalEngine
from subsecond.engine.request import Request
from subsecond.engine.stream import TokenStream
from subsecond.formats.artifact_manifest import SourceFile
from subsecond.models.checkpoint import Checkpoint
from subsecond.models.config import ModelConfig
from subsecond.models.prompt_encoder import PromptEncoder
from subsecond.models.tokenizer import Tokenizer
from subsecond.models.weights import WeightSource
from tests import byte_vocabulary
from tests.unit.tiny_decoder import TINY

DEFAULT_ANSWER = "Hello wide world"
END = "<|end|>"
MARKUP = ("<think>", "</think>", "<tool_call>", "</tool_call>")
BLOCK_TOKENS = 4
SCRIPTED_LOGIT = 30.0
HOLD_TIMEOUT_S = 60.0

CHAT_TEMPLATE = """\
{%- if tools %}<|start|>system
# Tools
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
Write each call within <tool_call></tool_call>:
<tool_call>
{"name": <name>, "arguments": <arguments>}
</tool_call><|end|>
{% endif %}
{%- for message in messages %}<|start|>
{%- if message.role == 'tool' %}user
<tool_response>
{{ message.content }}
</tool_response>
{%- else %}{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}
{%- endif %}<|end|>
{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""


def tokenizer_metadata() -> dict[str, object]:
    """The byte vocabulary with markup for reasoning and tool calls behind it."""
    content = byte_vocabulary.metadata(extra_tokens=MARKUP)
    kinds = content["tokenizer.ggml.token_type"]
    assert isinstance(kinds, list)
    kinds[-len(MARKUP) :] = [byte_vocabulary.USER_DEFINED] * len(MARKUP)
    return content


class ScriptedContent:
    """What a checkpoint reads, without a file."""

    artifact = None

    def __init__(self, config: ModelConfig, template: str | None) -> None:
        self.config = config
        self.chat_template_source = template
        self.shapes: Mapping[str, tuple[int, ...]] = {}
        self.readings: Mapping[str, str] = {}

    def load_tokenizer(self) -> Tokenizer:
        return Tokenizer.from_gguf(tokenizer_metadata())

    def open_weights(self) -> WeightSource:
        raise AssertionError("a scripted model has no weights")

    def find_source(self) -> SourceFile:
        raise AssertionError("a scripted model has no file")


class ScriptedBackend:
    """Logits that make the scripted token by far the most likely one; everything else depends on all tokens before.

    hold        while it is cleared, no step goes on; a test that clears it sets it again
    hold_after  steps after which `hold` is cleared; None for never
    step_s      how long each step takes at least
    failure     raised by the next step, once
    """

    variant = "scripted/fp32/kv-fp32"
    isa = "scalar"
    block_tokens = BLOCK_TOKENS

    def __init__(self, vocab_size: int, *, num_blocks: int = 2048, max_rows: int = 512) -> None:
        self.vocab_size = vocab_size
        self.num_blocks = num_blocks
        self.max_rows = max_rows
        self.hold = threading.Event()
        self.hold.set()
        self.hold_after: int | None = None
        self.step_s = 0.0
        self.failure: Exception | None = None
        self.is_closed = False
        self.weight_bytes = 1000
        self.kv_bytes = 100
        self.scripts: dict[tuple[int, ...], tuple[int, ...] | None] = {}
        self._slots = np.zeros(num_blocks * BLOCK_TOKENS, np.int32)
        self._logits: Float32 = np.zeros((0, vocab_size), np.float32)

    def forward(self, batch: ForwardBatch) -> Float32:
        assert self.hold.wait(HOLD_TIMEOUT_S), "the test that holds the steps has forgotten them"
        if self.hold_after is not None:
            self.hold_after -= 1
            if self.hold_after < 0:
                self.hold_after = None
                self.hold.clear()
                assert self.hold.wait(HOLD_TIMEOUT_S), "the test that holds the steps has forgotten them"
        time.sleep(self.step_s)
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        blocks = batch.block_tables[batch.row_sequence, batch.positions // BLOCK_TOKENS]
        self._slots[blocks * BLOCK_TOKENS + batch.positions % BLOCK_TOKENS] = batch.token_ids
        rows = [self._row(batch, row) for row in batch.logits_rows.tolist()]
        self._logits = np.array(rows, np.float32).reshape(len(rows), self.vocab_size)
        return self._logits

    def sample(self, batch: SampleBatch) -> SampleResult:
        return sample(self._logits, batch, isa=self.isa, num_threads=1)

    def close(self) -> None:
        self.is_closed = True

    def _row(self, batch: ForwardBatch, row: int) -> Float32:
        places = np.arange(batch.positions[row] + 1)
        blocks = batch.block_tables[batch.row_sequence[row]][places // BLOCK_TOKENS]
        past = tuple(self._slots[blocks * BLOCK_TOKENS + places % BLOCK_TOKENS].tolist())
        generator = np.random.default_rng(zlib.crc32(np.array(past, np.int32).tobytes()))
        logits = generator.normal(size=self.vocab_size).astype(np.float32)
        logits[ord("a") - 33 : ord("z") - 32] += 8  # where the byte vocabulary has the small letters
        token = self._scripted(past)
        if token is not None:
            logits[token] = SCRIPTED_LOGIT
        return logits

    def _scripted(self, past: tuple[int, ...]) -> int | None:
        """The next token of the script whose prompt `past` begins with; the longest prompt decides."""
        prompts = [prompt for prompt in self.scripts if past[: len(prompt)] == prompt]
        if not prompts:
            return None
        prompt = max(prompts, key=len)
        script, place = self.scripts[prompt], len(past) - len(prompt)
        return None if script is None else script[min(place, len(script) - 1)]


class ScriptedEngine(LocalEngine):
    """Looks up what to say before it takes a request."""

    def __init__(self, model: ScriptedModel, backend: ScriptedBackend) -> None:
        super().__init__(backend, context_length=model.checkpoint.config.context_length)
        self._model = model
        self._scripted_backend = backend
        self.requests: list[Request] = []

    def submit(self, request: Request) -> TokenStream:
        self._scripted_backend.scripts[request.prompt_ids] = self._model.script_for(request.prompt_ids)
        self.requests.append(request)
        return super().submit(request)


class ScriptedModel:
    """Implements `ServedModel`. `answers` maps a text that a prompt may contain to what is said then."""

    load_ms = 1.5

    def __init__(
        self, name: str = "scripted", *, template: str | None = CHAT_TEMPLATE, context_length: int = 4096, **sizes: int
    ) -> None:
        vocab_size = len(byte_vocabulary.token_texts(tokenizer_metadata()))
        config = replace(TINY, name=name, vocab_size=vocab_size, context_length=context_length)
        content = ScriptedContent(config, template)
        self.checkpoint = Checkpoint(Path(f"/models/{name}.gguf"), content, None)
        self.prompts = PromptEncoder(self.checkpoint)
        self.backend = ScriptedBackend(vocab_size, **sizes)
        self.engine = ScriptedEngine(self, self.backend)
        self.answers: dict[str, str] = {}
        self.is_closed = False

    def script_for(self, prompt_ids: tuple[int, ...]) -> tuple[int, ...] | None:
        """The tokens to say to a prompt, the end included; None for random letters."""
        tokenizer = self.checkpoint.tokenizer
        prompt = tokenizer.decode(prompt_ids, skip_special=False)
        answer = next((answer for key, answer in self.answers.items() if key in prompt), None)
        if answer is None and "say " in prompt:
            answer = prompt.rpartition("say ")[2].partition(END)[0]
        elif answer is None and "random" in prompt:
            return None
        answer = DEFAULT_ANSWER if answer is None else answer
        return (*tokenizer.encode(answer, allow_special=True), tokenizer.eos_ids[0])

    def close(self) -> None:
        self.engine.close()
        self.backend.close()
        self.is_closed = True


class ScriptedEmbedder:
    """Implements `ServedEmbedder`: a vector is made of the checksum of its tokens."""

    width = 8

    def __init__(self, name: str = "embedding") -> None:
        vocab_size = len(byte_vocabulary.token_texts(tokenizer_metadata()))
        config = replace(TINY, name=name, vocab_size=vocab_size, context_length=64, pooling="mean")
        self.checkpoint = Checkpoint(Path(f"/models/{name}.gguf"), ScriptedContent(config, None), None)
        self.backend = ScriptedBackend(vocab_size)
        self.calls: list[list[list[int]]] = []
        self.failure: Exception | None = None
        self.hold = threading.Event()
        self.hold.set()
        self.is_closed = False

    def embed_tokens(self, sequences: Sequence[Sequence[int]]) -> Float32:
        assert self.hold.wait(HOLD_TIMEOUT_S), "the test that holds the calls has forgotten them"
        self.calls.append([list(sequence) for sequence in sequences])
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        seeds = [zlib.crc32(np.array(sequence, np.int32).tobytes()) for sequence in sequences]
        vectors = np.array([np.random.default_rng(seed).normal(size=self.width) for seed in seeds], np.float32)
        units: Float32 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return units

    def close(self) -> None:
        self.is_closed = True
