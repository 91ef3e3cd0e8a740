"""Which weight a tensor of a Hugging Face checkpoint is: its name there to ours, by the tables of the families."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from subsecond.models.families.family import Family

STANDARD: Mapping[str, str] = MappingProxyType(
    {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "blk.{layer}.attn_norm": "model.layers.{layer}.input_layernorm",
        "blk.{layer}.attn_q": "model.layers.{layer}.self_attn.q_proj",
        "blk.{layer}.attn_k": "model.layers.{layer}.self_attn.k_proj",
        "blk.{layer}.attn_v": "model.layers.{layer}.self_attn.v_proj",
        "blk.{layer}.attn_q_norm": "model.layers.{layer}.self_attn.q_norm",
        "blk.{layer}.attn_k_norm": "model.layers.{layer}.self_attn.k_norm",
        "blk.{layer}.attn_output": "model.layers.{layer}.self_attn.o_proj",
        "blk.{layer}.ffn_norm": "model.layers.{layer}.post_attention_layernorm",
        "blk.{layer}.ffn_gate": "model.layers.{layer}.mlp.gate_proj",
        "blk.{layer}.ffn_up": "model.layers.{layer}.mlp.up_proj",
        "blk.{layer}.ffn_down": "model.layers.{layer}.mlp.down_proj",
    }
)
"""Names of Llama and of the many that took them over."""

# A checkpoint has these before its names or not, depending on the class that wrote it; some have one twice.
_PREFIXES = ("language_model", "model")
_UNUSED = r"(?:.*\.)?rotary_emb\.inv_freq"  # follows from the configuration
_IMAGES = re.compile(r"(?:vision_tower|vision_model|multi_modal_projector)\..*")
_OLD_PARTS = {"gamma": "weight", "beta": "bias"}  # of layer norms, in the first checkpoints
_NUMBER = re.compile(r"(?<=\.)(0|[1-9][0-9]{0,3})(?=\.)")

_LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,3})\.(.*)")


@dataclass(frozen=True, slots=True)
class Place:
    """The weight that a tensor is, or is a part of: `module` is its name without ".weight", `part` that behind it."""

    module: str
    part: str
    expert: int | None = None


class NameTable:
    """The names of one family."""

    def __init__(self, family: Family) -> None:
        tables = (STANDARD, family.hf_tensors)  # where both have a name, that of the family counts
        prefixes = "|".join((*_PREFIXES, *family.hf_prefixes))
        self._prefix = re.compile(rf"(?:(?:{prefixes})\.)+")
        self._unused = re.compile("|".join((_UNUSED, *family.hf_unused)))
        self._modules = {self._without_prefix(theirs): ours for table in tables for ours, theirs in table.items()}
        self._names = {ours: theirs for table in tables for ours, theirs in table.items()}

    def find(self, name: str) -> Place | None:
        """The place of a tensor, None when the family has no such weight."""
        module, _, part = self._without_prefix(name).rpartition(".")
        numbers = [int(each) for each in _NUMBER.findall(f"{module}.")]
        slots = iter(("{layer}", "{expert}"))
        found = self._modules.get(_NUMBER.sub(lambda match: next(slots, match[0]), f"{module}.")[:-1])
        if found is None or not part:
            return None
        layer, expert = [*numbers, None, None][:2]
        if module.endswith("LayerNorm"):
            part = _OLD_PARTS.get(part, part)
        return Place(found if layer is None else found.replace("{layer}", str(layer)), part, expert)

    def module_of(self, weight: str, expert: int | None = None) -> str | None:
        """The inverse of `find`: the module of a weight such as "blk.3.attn_q.weight" as checkpoints name it.

        None for a weight that checkpoints of the family do not have. `expert` is needed where each has its own module.
        """
        module, layer = weight.rpartition(".")[0], ""
        match = _LAYER.match(module)
        if match:
            layer, module = match[1], f"blk.{{layer}}.{match[2]}"
        name = self._names.get(module)
        if name is None or ("{expert}" in name) != (expert is not None):
            return None
        return name.replace("{layer}", layer).replace("{expert}", str(expert))

    def is_unused(self, name: str) -> bool:
        """Whether the arithmetic does not need the tensor."""
        return self._unused.fullmatch(self._without_prefix(name)) is not None

    def is_of_images(self, name: str) -> bool:
        """Whether the tensor belongs to the part of a model that reads images."""
        return _IMAGES.fullmatch(self._without_prefix(name)) is not None

    def _without_prefix(self, name: str) -> str:
        match = self._prefix.match(name)
        return name[match.end() :] if match else name
