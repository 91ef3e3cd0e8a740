"""Rounds all linears of a model to one number of bits, segment by segment, each on inputs from rounded segments."""

from __future__ import annotations

from dataclasses import dataclass

from subsecond.compress.methods import choose_type
from subsecond.compress.segment_quantizer import (
    CORRECTION,
    DAMPING,
    DATA_FREE,
    METHODS,
    PORTABLE_BITS,
    WIDEST,
    SegmentQuantizer,
)
from subsecond.compress.segment_run import SegmentResult, run_segments
from subsecond.compress.stage import Decision, StageJob, StageResult
from subsecond.compress.walk import Visit
from subsecond.core.errors import InputError
from subsecond.core.settings import setting, validate
from subsecond.formats.gguf_types import TensorType
from subsecond.graph.graph import Graph
from subsecond.models.readings import READINGS

BITS = ("2", "3", "4", "5", "6", "8", "16")


@dataclass(frozen=True, slots=True)
class Settings:
    """How linears are rounded. The head and the embedding table have bits of their own."""

    bits: str = setting("4", "bits of a weight, scales not counted", choices=BITS)
    method: str = setting("gptq", "how weights are rounded", choices=METHODS)
    blocks: str = setting(
        "portable",
        "portable: what checkpoints hold; gguf: values of super-blocks where widths allow, as half precision",
        choices=("portable", "gguf"),
    )
    reading: str = setting("stored", "how linears of layers are executed", choices=READINGS[:-1])
    head_bits: str = setting("8", "bits of the output head", choices=PORTABLE_BITS)
    table_bits: str = setting(
        "8", "bits of the embedding table; a tied head has the more of both", choices=PORTABLE_BITS
    )
    forced: bool = setting(False, "round to 2 or 3 bits although that ruins small models")
    sweeps: int = setting(2, "rounds of coordinate descent after gptq", minimum=0, maximum=20)
    damping: float = setting(DAMPING, "of the Gram matrix, for gptq", minimum=0, maximum=1, is_minimum_excluded=True)
    widest: int = setting(
        WIDEST, "inputs up to which gptq is used; scales of wider weights are searched", minimum=32, maximum=2**20
    )
    correction: float = setting(
        CORRECTION,
        "share of what the residual stream has lost before that attn_output and ffn_down give back, with gptq and awq",
        minimum=0,
        maximum=1,
    )
    steps: int = setting(200, "steps of learned rounding (autoround) of each segment", minimum=10, maximum=10_000)
    seed: int = setting(0, "of learned rounding", minimum=0, maximum=2**32)

    def __post_init__(self) -> None:
        validate(self)
        if self.method == "hqq" and self.bits != "4":
            raise InputError(f"method hqq has 4 bits only, not {self.bits}")
        if int(self.bits) in (2, 3) and not self.forced:
            choose_type(int(self.bits), 256)  # says why not
        if self.bits not in PORTABLE_BITS and self.blocks != "gguf":
            raise InputError(
                f"{self.bits} bits are stored in blocks that Hugging Face checkpoints cannot hold; give "
                f"{', '.join(PORTABLE_BITS)}, or something between by the stage mixed. With blocks set to gguf "
                "weights get the values of such blocks, held in half precision"
            )


def needs_calibration(settings: Settings) -> bool:
    """Whether the method learns from text."""
    return settings.method not in DATA_FREE and settings.bits not in ("8", "16")


def run(job: StageJob, settings: Settings) -> StageResult:
    """Round every linear of the layers, the head and the table; everything else is taken as it is stored."""
    graph = job.checkpoint.graph()
    quantizer = SegmentQuantizer.of_stage(
        job, settings, damping=settings.damping, widest=settings.widest, has_text=needs_calibration(settings)
    )

    def work(visit: Visit) -> SegmentResult:
        types = {
            name: _type_of(graph, name, settings) for names in visit.segment.linears.values() for name in names
        } | {name: _type_of(graph, name, settings) for name in visit.segment.matrices}
        return quantizer.round(visit, types, quantizer.tables(visit, int(settings.head_bits), int(settings.table_bits)))

    decisions = run_segments(job, work, graph)
    job.sink.readings.clear()
    if settings.reading != "stored":
        job.sink.readings["default"] = settings.reading
        why = "activations of eight bits are faster; the weights are rotated and rounded to channels when loaded"
        decisions.append(Decision("model", f"linears of layers are executed as {settings.reading}", why))
    return StageResult(tuple(decisions))


def _type_of(graph: Graph, name: str, settings: Settings) -> TensorType:
    if settings.method == "hqq":
        return TensorType.Q4_1 if graph.weights[name][-1] % 32 == 0 else TensorType.F16
    has_super_blocks = settings.blocks == "gguf"
    width = graph.weights[name][-1]
    return choose_type(int(settings.bits), width, is_forced=settings.forced, has_super_blocks=has_super_blocks)
