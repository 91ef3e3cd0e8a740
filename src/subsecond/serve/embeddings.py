"""/v1/embeddings: texts or token ids to vectors."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from subsecond.backends.batch import Float32
from subsecond.models.prompt_encoder import MAX_CHARS_PER_TOKEN
from subsecond.serve.answers import artifact_name, kernels_name
from subsecond.serve.client import while_connected
from subsecond.serve.context import ServerContext
from subsecond.serve.errors import FieldError
from subsecond.serve.registry import Served
from subsecond.serve.routing import ApiRoute
from subsecond.serve.served_model import ServedEmbedder

NUM_VECTORS_A_TURN = 16  # written before other requests have their turn


class EmbeddingBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A request for vectors. `user` is harmless."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class EmbeddingReply(msgspec.Struct):
    """One vector: numbers, or in base64 the bytes of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct):
    """Tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    """The vectors in the order of their texts; `subsecond` tells how they were computed."""

    data: list[EmbeddingReply]
    model: str
    usage: EmbeddingUsage
    subsecond: dict[str, Any]
    object: Literal["list"] = "list"


def routes(context: ServerContext) -> list[ApiRoute]:
    """Return the one route."""

    async def embed(request: Request) -> Response:
        start_s = time.perf_counter()
        body = await context.read(request, EmbeddingBody)
        async with context.lease(body.model) as served:
            embedder = served.embedder
            check_dimensions(body.dimensions, embedder)
            texts = _texts(body.input)
            context.limits.check_inputs(len(texts))
            sequences = await asyncio.to_thread(token_sequences, embedder, texts)
            vectors = await while_connected(request, served.embeddings.embed(sequences))
            num_tokens = sum(map(len, sequences))
            total_s = time.perf_counter() - start_s
            served.metrics.add_texts(len(sequences), num_tokens, total_s)
            tail = {
                "model": body.model,
                "usage": EmbeddingUsage(num_tokens, num_tokens),
                "subsecond": served_fields(served, total_s),
            }
            content = await _written(vectors, body.encoding_format, tail)
        return Response(content, media_type="application/json")

    return [
        ApiRoute(
            "POST",
            "/v1/embeddings",
            embed,
            summary="Turn texts into vectors",
            request_type=EmbeddingBody,
            response_type=EmbeddingList,
        )
    ]


def check_dimensions(dimensions: int | None, embedder: ServedEmbedder) -> None:
    """FieldError if vectors of another length than the model's are asked for."""
    if dimensions is not None and dimensions != embedder.width:
        raise FieldError(
            f"dimensions={dimensions} is not allowed: this model's vectors have {embedder.width} numbers, and a part "
            "of them means something only for models that were trained for it. Leave it out",
            param="dimensions",
        )


def token_sequences(
    embedder: ServedEmbedder, texts: Sequence[str | Sequence[int]], *, name: str = "input"
) -> list[list[int]]:
    """Return the token ids of each text; FieldError for one that is empty, too long or not of the vocabulary.

    Takes a while for long texts, so it is called in a thread. `name` is what the API calls the texts.
    """
    config, tokenizer = embedder.checkpoint.config, embedder.checkpoint.tokenizer
    sequences = []
    for index, text in enumerate(texts):
        place = f"{name}[{index}]"
        if not len(text):
            raise FieldError(f"{place} is empty; leave it out", param=place)
        if len(text) > config.context_length * MAX_CHARS_PER_TOKEN:
            raise FieldError(
                f"{place} is {len(text)} long, far more than fits into the {config.context_length} tokens that this "
                "model takes. Split it",
                param=place,
            )
        if isinstance(text, str):
            token_ids = tokenizer.encode_text(text)
        else:
            token_ids = list(text)
            if not 0 <= min(token_ids) <= max(token_ids) < config.vocab_size:
                raise FieldError(f"{place} has ids that are not from 0 to {config.vocab_size - 1}", param=place)
        if len(token_ids) > config.context_length:
            raise FieldError(
                f"{place} has {len(token_ids)} tokens; this model takes at most {config.context_length}. Split it",
                param=place,
            )
        sequences.append(token_ids)
    return sequences


def served_fields(served: Served, total_s: float) -> dict[str, Any]:
    """How vectors were computed, for the body of their answer."""
    embedder = served.embedder
    return {
        "artifact": artifact_name(embedder),
        "variant": embedder.backend.variant,
        "kernels": kernels_name(embedder),
        "total_ms": round(total_s * 1e3, 3),
    }


def _texts(given: str | list[str | int | list[int]]) -> Sequence[str | Sequence[int]]:
    """Every text of a body: one text, one list of token ids, or a list of either."""
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(item, int) for item in given):
        return [[item for item in given if isinstance(item, int)]]
    texts = [item for item in given if not isinstance(item, int)]
    if len(texts) < len(given):
        raise FieldError(
            "input mixes token ids with texts; give a text, a list of ids or a list of either", param="input"
        )
    return texts


async def _written(vectors: Float32, form: Literal["float", "base64"], tail: dict[str, Any]) -> bytes:
    """The whole body, written vector by vector with turns for others: numbers as text take long."""
    little = vectors.astype("<f4", copy=False)
    pieces = []
    for index in range(len(vectors)):
        value = little[index].tolist() if form == "float" else base64.b64encode(little[index].tobytes()).decode()
        pieces.append(msgspec.json.encode(EmbeddingReply(index, value)))
        if index % NUM_VECTORS_A_TURN == NUM_VECTORS_A_TURN - 1:
            await asyncio.sleep(0)
    return b'{"object":"list","data":[' + b",".join(pieces) + b"]," + msgspec.json.encode(tail)[1:]
