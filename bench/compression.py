"""Four bits made by our recipes beside llama.cpp's Q4_K_M with an importance matrix, from one neutral source.

    python -m bench.compression --model FILE --text FILE --eval-text FILE --work DIR [--recipes int4,mixed] [--json]

The neutral source is the model after its residual stream was turned: the same function, without the grid that its file
was rounded to. Both sides learn from the same text; all results are read by `subsecond eval` through our kernels, on
the same windows, against the fp32 graph of the original file. Needs llama.cpp's programs that quantize
(bench/peers/llama_cpp/build.sh --quantize). What is in the work folder already is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from subsecond.compress.work import bits_per_weight
from subsecond.models.checkpoint import open_checkpoint

ROTATE = 'version = 1\n[[stage]]\nkind = "rotate"\n'
IMATRIX_CHUNKS = 16  # of 512 tokens: as much as the recipes learn from
LLAMA = "llama.cpp Q4_K_M, importance matrix"


def main() -> int:
    """Make what is missing, evaluate and print."""
    args = _arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    neutral = _neutral(args.model, args.work)
    made = {
        LLAMA: _by_llama(args, neutral),
        **{f"recipe {name}": _by_recipe(args, neutral, name) for name in args.recipes},
    }
    rows = [_figures(args, name, path) for name, path in {"neutral source": neutral, **made}.items()]
    if args.json:
        print(json.dumps(rows))
        return 0
    print(f"{'':40}{'bits':>8}{'MB':>9}{'mean KL':>24}{'top-1':>9}{'perplexity':>12}")
    for row in rows:
        kl = row["kl_mean"]
        interval = f"{kl['value']:.4g} ({kl['low']:.4g}-{kl['high']:.4g})"
        print(
            f"{row['name']:40}{row['bits_per_weight']:8.3f}{row['megabytes']:9.1f}{interval:>24}"
            f"{row['top1_agreement']['value']:9.4f}{row['perplexity']['value']:12.4f}"
        )
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="what both sides learn from")
    parser.add_argument("--eval-text", type=Path, action="append", required=True)
    parser.add_argument("--windows", type=int, default=8, help="of each evaluation text")
    parser.add_argument("--window-tokens", type=int, default=512)
    parser.add_argument("--recipes", type=lambda text: text.split(","), default=["int4"])
    parser.add_argument("--llama-build", type=Path, default=Path("build/peers/llama_cpp/build/bin"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _neutral(model: Path, work: Path) -> Path:
    recipe = work / "rotate.toml"
    recipe.write_text(ROTATE, encoding="utf-8")
    return _compressed(model, str(recipe), work / "neutral")


def _by_recipe(args: argparse.Namespace, source: Path, recipe: str) -> Path:
    return _compressed(source, recipe, args.work / Path(recipe).stem, "--text", str(args.text))


def _compressed(source: Path, recipe: str, out: Path, *more: str) -> Path:
    if not out.exists():
        _run(
            sys.executable, "-m", "subsecond", "compress", str(source), "--recipe", recipe, "--out", str(out),
            "--eval-windows", "0", *more,
        )  # fmt: skip
    return out


def _by_llama(args: argparse.Namespace, neutral: Path) -> Path:
    work: Path = args.work
    halves, matrix, out = (work / name for name in ("neutral-f16.gguf", "imatrix.gguf", "q4_k_m.gguf"))
    if not halves.exists():
        _run(sys.executable, "-m", "subsecond", "export", str(neutral), "--to", "gguf", "--out", str(halves))
    if not matrix.exists():
        _run(
            str(args.llama_build / "llama-imatrix"), "-m", str(halves), "-f", str(args.text), "-o", str(matrix),
            "-c", "512", "--chunks", str(IMATRIX_CHUNKS), "--no-ppl",
        )  # fmt: skip
    if not out.exists():
        _run(str(args.llama_build / "llama-quantize"), "--imatrix", str(matrix), str(halves), str(out), "Q4_K_M")
    return out


def _figures(args: argparse.Namespace, name: str, path: Path) -> dict[str, Any]:
    texts = [part for text in args.eval_text for part in ("--text", str(text))]
    result = subprocess.run(
        [
            sys.executable, "-m", "subsecond", "eval", str(path), "--reference", str(args.model), *texts,
            "--windows", str(args.windows), "--window-tokens", str(args.window_tokens), "--json",
        ],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found = json.loads(result.stdout)
    checkpoint = open_checkpoint(path)
    size = sum(checkpoint.weights.raw(each).nbytes for each in checkpoint.graph().weights)
    kept = {key: found[key] for key in ("kl_mean", "kl_p99", "top1_agreement", "perplexity", "num_tokens")}
    return {"name": name, "bits_per_weight": bits_per_weight(checkpoint), "megabytes": size / 1e6, **kept}


def _run(*command: str) -> None:
    print("$", *command, file=sys.stderr)
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
