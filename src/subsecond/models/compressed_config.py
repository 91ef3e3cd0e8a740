"""The `quantization_config` of a checkpoint in compressed-tensors format, gathered weight by weight."""

from __future__ import annotations

from collections.abc import Iterable

from subsecond.models.compressed_parts import PackScheme


class CompressedConfig:
    """Gathers which module is stored how, by the names of the checkpoint."""

    def __init__(self) -> None:
        self._modules: dict[PackScheme, list[str]] = {}
        self._tables: dict[PackScheme, list[str]] = {}
        self._plain: list[str] = []

    def add_linear(self, module: str, scheme: PackScheme | None) -> None:
        """A linear; without a scheme its weight is plain."""
        if scheme is None:
            self._plain.append(module)
        else:
            self._modules.setdefault(scheme, []).append(module)

    def add_table(self, module: str, scheme: PackScheme) -> None:
        """A quantized embedding table."""
        self._tables.setdefault(scheme, []).append(module)

    @property
    def is_empty(self) -> bool:
        """Whether no weight is quantized."""
        return not self._modules and not self._tables

    def to_json(self, plain: Iterable[str] = ()) -> dict[str, object]:
        """The section; `plain` are further linears that are not quantized, such as a head that is tied.

        One scheme for all linears targets their class and names the others in `ignore`; with several, each names its
        modules. Formats that differ are the format "mixed-precision".
        """
        is_uniform = len(self._modules) == 1
        groups: dict[str, object] = {}
        schemes = list(dict.fromkeys([*self._modules, *self._tables]))
        for index, scheme in enumerate(schemes):
            linears = self._modules.get(scheme, [])
            targets = ["Linear"] if linears and is_uniform else linears
            groups[f"group_{index}"] = {"targets": [*targets, *self._tables.get(scheme, [])], **scheme.to_json()}
        formats = {scheme.format for scheme in schemes}
        return {
            "quant_method": "compressed-tensors",
            "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": sorted({*self._plain, *plain}),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }
