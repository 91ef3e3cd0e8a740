"""What `explain` says to people on a terminal: its report as lines and tables; computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from subsecond.cli.output import table

NUM_LAYERS, NUM_FLIPS, NUM_TOKENS = 8, 8, 12
WIDTH = 60  # of a piece of text
PARTS = ("tokenize", "queue", "prefill", "decode", "sample", "detokenize", "other")


def report_text(report: Mapping[str, Any]) -> str:
    """The sections that the report has."""
    blocks = [f"{report['model']} ({report['variant']}) against {report['reference']} in float32"]
    if report["layers"] is not None:
        blocks += _layers(report["layers"])
    if report["flips"] is not None:
        blocks += _flips(report)
    if report["attribution"] is not None:
        blocks += _attribution(report["attribution"])
    if report["time"] is not None:
        blocks += _time(report["time"])
    blocks += [f"finding: {finding}" for finding in report["findings"]]
    return "\n\n".join(blocks)


def _layers(layers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    last = layers[-1]
    yield f"Divergence of the hidden state: relative error {last['relative_error']:.3g} after the last layer"
    worst = sorted(layers, key=lambda layer: -layer["added_error"])[:NUM_LAYERS]
    rows = [("adds most", "relative error", "cosine distance", "added error")]
    for layer in worst:
        figures = (layer["relative_error"], layer["cosine_distance"], layer["added_error"])
        rows.append((layer["name"], *(f"{figure:.3g}" for figure in figures)))
    yield table(rows)


def _flips(report: Mapping[str, Any]) -> Iterator[str]:
    count, scored = report["num_flips"], report["num_scored_tokens"]
    yield f"Flips: {count} of {scored} positions ({count / scored:.2%}) go on with another token"
    if report["flips"]:
        rows = [("after", "reference", "served")]
        for flip in report["flips"][:NUM_FLIPS]:
            rows.append((_tail(flip["context"]), _tops(flip["reference"]), _tops(flip["candidate"])))
        yield table(rows)
    for answer in report["answers"]:
        yield "\n".join(_answer(answer))


def _answer(answer: Mapping[str, Any]) -> Iterator[str]:
    yield f"prompt     {_line(answer['prompt'])}"
    if answer["first_difference"] is None:
        yield f"both       {_line(answer['candidate'])}"
        return
    yield f"reference  {_line(answer['reference'])}"
    yield f"served     {_line(answer['candidate'])}"
    yield (
        f"they part at token {answer['first_difference']}: {answer['reference_token']!r} "
        f"({answer['reference_probability']:.1%} by the reference) or {answer['candidate_token']!r} "
        f"({answer['candidate_probability']:.1%})"
    )


def _attribution(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"Attribution of the answer {_line(found['answer'])!r} to its prompt"
    by_place = {item["place"]: item for item in found["occluded"]}
    rows = [("token", "gradient x input", "fall without it: served", "reference")]
    for place, item in by_place.items():
        score = found["tokens"][place]["gradient_x_input"]
        rows.append((repr(item["text"]), f"{score:+.3g}", f"{item['served']:+.3g}", f"{item['reference']:+.3g}"))
    yield table(rows)
    correlation = found["rank_correlation"]
    text = "not defined" if correlation is None else f"{correlation:.3f}"
    yield (
        f"same evidence: rank correlation {text}, {found['top_overlap']:.0%} of the {found['num_compared']} most "
        "important tokens are the same"
    )


def _time(budget: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"Time of one request: {budget['total_ms']:.1f} ms for {budget['num_prompt_tokens']} prompt tokens and "
        f"{budget['num_new_tokens']} new ones"
    )
    rows = [("part", "ms", "share")]
    for part in PARTS:
        rows.append((part, f"{budget[f'{part}_ms']:.2f}", f"{budget[f'{part}_ms'] / budget['total_ms']:.1%}"))
    yield table(rows)
    if budget["what_if_error"] is not None:
        yield f"what if: {budget['what_if_error']}"
        return
    yield table(
        [
            ("what if (predicted)", "TTFT ms", "TPOT ms", "total ms", ""),
            *(what_if_row(guess) for guess in budget["what_if"]),
        ]
    )


def what_if_row(guess: Mapping[str, Any]) -> tuple[str, ...]:
    """Cells of one prediction."""
    notes = [*(["scaled beyond what was measured"] if guess["is_scaled"] else []), guess["note"]]
    if guess["total_ms"] is None:
        return (guess["change"], "-", "-", "-", _line(guess["note"]))
    figures = (f"{guess[name]:.2f}" for name in ("ttft_ms", "tpot_ms", "total_ms"))
    return (guess["change"], *figures, "; ".join(note for note in notes if note))


def _tops(tokens: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{item['token']!r} {item['probability']:.1%}" for item in tokens)


def _tail(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else "…" + line[-WIDTH:]


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 2 * WIDTH else line[: 2 * WIDTH] + "…"
