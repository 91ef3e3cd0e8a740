"""Routes of Ollama's API that tell of models: which there are, what they are made of, which are loaded."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import subsecond
from subsecond.core.errors import SubsecondError, UnsupportedError
from subsecond.models.checkpoint import Checkpoint, open_checkpoint
from subsecond.models.prompt_encoder import PromptEncoder
from subsecond.models.store import resolve
from subsecond.models.template_variables import THINKING_SWITCHES
from subsecond.serve.context import ServerContext
from subsecond.serve.errors import FieldError
from subsecond.serve.ollama_types import ShowRequest
from subsecond.serve.registry import ModelSpec, ModelState, Served
from subsecond.serve.routing import ApiRoute

LATEST = ":latest"
NEVER = "9999-12-31T23:59:59Z"


def registered_name(context: ServerContext, name: str) -> str:
    """Return the name by which a model is known here: clients put `:latest` behind names without a tag."""
    short = name.removesuffix(LATEST)
    return short if name not in context.registry.names and short in context.registry.names else name


def routes(context: ServerContext) -> list[ApiRoute]:
    """Return the routes."""
    started_s = time.time()

    async def tags(_: Request) -> Response:
        states = context.registry.states()
        files = await asyncio.gather(*(asyncio.to_thread(_file_facts, state.spec) for state in states))
        models = [
            _model(state, started_s if mtime_s is None else mtime_s, num_bytes)
            for state, (num_bytes, mtime_s) in zip(states, files, strict=True)
        ]
        return _json({"models": models})

    async def running(_: Request) -> Response:
        models = [
            _model(state, started_s, state.num_bytes)
            | {
                "expires_at": NEVER,
                "size_vram": 0,
                "context_length": state.served.part.checkpoint.config.context_length,
            }
            for state in context.registry.states()
            if state.served is not None
        ]
        return _json({"models": models})

    async def show(request: Request) -> Response:
        body = await context.read(request, ShowRequest)
        given = body.model or body.name
        if given is None:
            raise FieldError("'model' is missing", param="model")
        name = registered_name(context, given)
        context.registry.check_name(name)
        state = next(each for each in context.registry.states() if each.spec.name == name)
        return _json(await asyncio.to_thread(_description, state, bool(body.verbose)))

    async def version(_: Request) -> Response:
        return _json({"version": subsecond.__version__})

    return [
        ApiRoute("GET", "/api/tags", tags, summary="List the models in Ollama's form"),
        ApiRoute("GET", "/api/ps", running, summary="List the loaded models in Ollama's form"),
        ApiRoute("POST", "/api/show", show, summary="Show a model in Ollama's form", request_type=ShowRequest),
        ApiRoute("GET", "/api/version", version, summary="The version of the server in Ollama's form"),
    ]


def _model(state: ModelState, modified_s: float, num_bytes: int) -> dict[str, Any]:
    """One entry of a list; of a model that is not loaded little is known without reading its file."""
    name = state.spec.name
    modified = datetime.fromtimestamp(modified_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    details = _details(state.served.part.checkpoint if state.served is not None else None)
    # tells one version of a file from another, as clients use it; the weights are not read for a list
    digest = hashlib.sha256(f"{name}\n{num_bytes}\n{modified}".encode()).hexdigest()
    return {
        "name": name,
        "model": name,
        "modified_at": modified,
        "size": num_bytes,
        "digest": digest,
        "details": details,
    }


def _running(served: Served) -> dict[str, Any]:
    """What is told of a loaded model besides, which stays until its memory is needed."""
    context_length = served.part.checkpoint.config.context_length
    return {"expires_at": NEVER, "size_vram": 0, "context_length": context_length}


def _details(checkpoint: Checkpoint | None, quantization: str = "") -> dict[str, Any]:
    details: dict[str, Any] = {"parent_model": "", "format": "", "family": "", "families": []}
    details |= {"parameter_size": "", "quantization_level": quantization}
    if checkpoint is None:
        return details
    num_parameters = _num_parameters(checkpoint)
    details["format"] = "gguf" if checkpoint.path.suffix == ".gguf" else "safetensors"
    details["family"] = checkpoint.config.family
    details["families"] = [checkpoint.config.family]
    is_large = num_parameters >= 1e9
    details["parameter_size"] = f"{num_parameters / 1e9:.1f}B" if is_large else f"{num_parameters / 1e6:.2f}M"
    return details


def _description(state: ModelState, is_verbose: bool) -> dict[str, Any]:
    """What there is to say of a model; one that is not loaded is read from its file, as far as that is needed."""
    served = state.served
    checkpoint = open_checkpoint(resolve(state.spec.source)) if served is None else served.part.checkpoint
    _, modified_s = _file_facts(state.spec)
    modified = datetime.fromtimestamp(time.time() if modified_s is None else modified_s, UTC)
    template = checkpoint.chat_template
    return {
        "modelfile": f"FROM {state.spec.name}\n",
        "parameters": "",
        "template": template.source if template is not None else "",
        "details": _details(checkpoint, _quantization(checkpoint)),
        "model_info": _model_info(checkpoint, is_verbose),
        "capabilities": _capabilities(checkpoint),
        "modified_at": modified.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "subsecond": {"is_loaded": served is not None},
    }


def _model_info(checkpoint: Checkpoint, is_verbose: bool) -> dict[str, Any]:
    config = checkpoint.config
    info: dict[str, Any] = {
        "general.architecture": config.family,
        "general.basename": config.name,
        "general.parameter_count": _num_parameters(checkpoint),
        f"{config.family}.context_length": config.context_length,
        f"{config.family}.embedding_length": config.width,
        f"{config.family}.block_count": config.num_layers,
        f"{config.family}.feed_forward_length": config.ff_width,
        f"{config.family}.attention.head_count": config.num_heads,
        f"{config.family}.attention.head_count_kv": config.num_kv_heads,
        f"{config.family}.vocab_size": config.vocab_size,
    }
    if is_verbose:
        tokenizer = checkpoint.tokenizer
        info["tokenizer.ggml.bos_token_id"] = tokenizer.bos_id
        info["tokenizer.ggml.eos_token_ids"] = list(tokenizer.eos_ids)
    return info


def _capabilities(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.config.pooling is not None:
        return ["embedding"]
    prompts, template = PromptEncoder(checkpoint), checkpoint.chat_template
    variables: frozenset[str] = frozenset()
    if template is not None:
        with suppress(SubsecondError):  # a template that cannot be used can no more be asked to think
            variables = template.variables
    found = ["completion"]
    if prompts.tool_syntax is not None:
        found.append("tools")
    if prompts.markers is not None or not variables.isdisjoint(THINKING_SWITCHES):
        found.append("thinking")
    return found


def _quantization(checkpoint: Checkpoint) -> str:
    """The stored type of most weights; nothing for packed weights whose model file is not at hand."""
    if not checkpoint.shapes:
        return ""
    try:
        weights = checkpoint.weights
    except UnsupportedError:
        return ""
    kinds = Counter(weights.type_of(name).name for name in weights.shapes)
    return kinds.most_common(1)[0][0] if kinds else ""


def _num_parameters(checkpoint: Checkpoint) -> int:
    total = 0
    for shape in checkpoint.shapes.values():
        count = 1
        for extent in shape:
            count *= extent
        total += count
    return total


def _file_facts(spec: ModelSpec) -> tuple[int, float | None]:
    """Bytes and time of a model's file or folder of files; nothing where it cannot be found."""
    try:
        path = resolve(spec.source)
        files = [path] if path.is_file() else [each for each in path.iterdir() if each.is_file()]
        stats = [each.stat() for each in files]
        return sum(each.st_size for each in stats), max(each.st_mtime for each in stats)
    except (SubsecondError, OSError, ValueError):
        return 0, None


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
