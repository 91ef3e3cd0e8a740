"""`subsecond doctor`: what this machine can do, which kernels run on it, what is missing and how to get it."""

from __future__ import annotations

import argparse
import importlib.util
import platform
from dataclasses import asdict
from typing import Any

from subsecond.cli.output import MODEL_HELP, Subparsers, add_command, print_json, size_text, table
from subsecond.cli.probe_report import probe_report, probe_rows

BANDWIDTH_BYTES = 256 << 20  # far beyond any cache
# A module by which to know that an extra is installed, and what the extra is for.
EXTRAS = {
    "compress": ("torch", "reference executor, compression and training"),
    "hub": ("huggingface_hub", "models by hub name"),
    "cluster": ("ray", "several machines"),
}


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(subparsers, "doctor", "report what this machine can do, which kernels run and what is missing")
    parser.add_argument(
        "--measure", action="store_true", help="measure what the processor, the memory and the kernels do, and keep it"
    )
    parser.add_argument(
        "--model", metavar="MODEL", help=f"predict its speed and memory from what was measured; a {MODEL_HELP}"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report; returns 1 when no answer can be computed here."""
    report = _report(args.measure, args.model)
    if args.json:
        print_json(report, is_indented=True)
    else:
        print(_report_text(report))
    return 0 if report["native"]["error"] is None else 1


def _report(is_measured: bool, model: str | None) -> dict[str, Any]:
    import subsecond
    from subsecond.core import hardware
    from subsecond.models import foreign_stores, store

    machine = hardware.probe()
    stored = store.own_models()
    extras = {
        extra: {"is_installed": importlib.util.find_spec(module) is not None, "purpose": purpose}
        for extra, (module, purpose) in EXTRAS.items()
    }
    native, bandwidth_gb_s, probe = _native_report(machine.num_usable_cores, is_measured, model)
    return {
        "version": subsecond.__version__,
        "python": platform.python_version(),
        "machine": {**asdict(machine), "num_usable_cores": machine.num_usable_cores},
        "native": native,
        "memory_bandwidth_gb_s": bandwidth_gb_s,
        "probe": probe,
        "store": {
            "path": str(store.home()),
            "num_models": len(stored),
            "num_bytes": sum(model.file_bytes + model.artifact_bytes for model in stored),
        },
        "extras": extras,
        "advice": _advice(machine, extras, bool(stored or foreign_stores.list_foreign(is_quiet=True))),
    }


def _native_report(
    num_threads: int, is_measured: bool, model: str | None
) -> tuple[dict[str, Any], float | None, dict[str, Any] | None]:
    """What the native backend says of its kernels, the memory bandwidth in GB/s, and the probe."""
    try:
        from subsecond.backends import native
        from subsecond.backends.native import measuring
    except ImportError as error:
        return {"error": f"the native extension cannot be loaded ({error}); install subsecond again"}, None, None
    (*_, rate) = measuring.measure_read_rates(num_threads, [BANDWIDTH_BYTES // num_threads])
    return dict(native.report()), round(rate.bytes_s / 1e9, 1), probe_report(is_measured, model)


def _advice(machine: Any, extras: dict[str, dict[str, Any]], has_models: bool) -> list[str]:
    advice = [
        f"pip install 'subsecond[{name}]' for {extra['purpose']}"
        for name, extra in extras.items()
        if not extra["is_installed"]
    ]
    if machine.huge_pages == "never":
        advice.append(
            "huge pages are off, which costs memory bandwidth; "
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
        )
    if not has_models:
        advice.append("no model on disk yet; subsecond pull smollm2-135m")
    return advice


def _report_text(report: dict[str, Any]) -> str:
    machine = report["machine"]
    limit = machine["memory_limit_bytes"]
    cpu_limit = machine["cpu_limit"]
    bandwidth = report["memory_bandwidth_gb_s"]
    rows = [
        ("subsecond", f"{report['version']}, Python {report['python']}"),
        ("processor", f"{machine['processor_name']} ({machine['architecture']})"),
        (
            "cores",
            f"{machine['num_usable_cores']} usable of {machine['num_cores']}"
            + (f", control group pays for {cpu_limit:g}" if cpu_limit is not None else ""),
        ),
        (
            "memory",
            f"{size_text(machine['available_bytes'])} available of {size_text(machine['memory_bytes'])}"
            + (f", control group allows {size_text(limit)}" if limit is not None else ""),
        ),
        ("memory bandwidth", "not measured" if bandwidth is None else f"{bandwidth} GB/s"),
        ("huge pages", machine["huge_pages"]),
        *_native_rows(report["native"]),
        *(probe_rows(report["probe"]) if report["probe"] is not None else []),
        (
            "store",
            f"{report['store']['path']}, {report['store']['num_models']} models, "
            f"{size_text(report['store']['num_bytes'])}",
        ),
        *(
            (f"extra {name}", "installed" if extra["is_installed"] else "missing")
            for name, extra in report["extras"].items()
        ),
    ]
    advice = [f"- {line}" for line in report["advice"]]
    return "\n".join([table(rows), *(["", "To get more:", *advice] if advice else [])])


def _native_rows(native: dict[str, Any]) -> list[tuple[str, str]]:
    """What the kernels need of the processor, which ones run, and why the others do not."""
    rows = [("native", native["error"])] if native["error"] else []
    if "instruction_sets" not in native:
        return rows
    features = [name for name, is_present in native["features"].items() if is_present]
    rows.append(("features", ", ".join(features) or "none that the kernels make use of"))
    for isa in native["instruction_sets"]:
        state = "chosen" if isa["is_chosen"] else "can run" if isa["can_run"] else "cannot run"
        test = "" if isa["self_test"] is None else f"; self-test {isa['self_test']}"
        rows.append((f"kernels {isa['isa']}", f"{state}: {isa['reason']}{test}"))
    if native["chosen"]:
        rows.append(("arithmetic", f"{native['arithmetic']}, {len(native['kernels'])} kernels of {native['chosen']}"))
        rows.append(("keys and values", f"{', '.join(native['kv_types'])}; the first unless --kv names another"))
    return rows
