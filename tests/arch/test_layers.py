"""Imports point downwards only, siblings never import each other, and every third party has one door."""

from __future__ import annotations

import sys

import pytest

from tests.arch.source_tree import (
    NATIVE,
    PACKAGE,
    ROOT,
    Import,
    cpp_files,
    imports,
    module_name,
    python_files,
    relative,
    report,
)

# Top to bottom. A package may import from rows below its own, never from its own row or above.
LAYERS = (
    ("cli",),
    ("api", "embedder"),
    ("apps", "optimize"),
    ("compress", "serve", "cluster"),
    ("measure",),
    ("engine",),
    ("backends",),
    ("models",),
    ("graph",),
    ("formats",),
    ("core",),
)
ROW_BY_PACKAGE = {package: row for row, packages in enumerate(LAYERS) for package in packages}
LAYER_RULE = "Imports point downwards: " + " > ".join(", ".join(row) for row in LAYERS)

# Where a third party may be imported. A package that is not named here may be imported nowhere in src/.
DOORS = {
    "numpy": ("subsecond",),
    "torch": ("subsecond.backends.torch", "subsecond.compress"),
    "onnx": ("subsecond.compress",),
    "tokenizers": ("subsecond.models",),
    "jinja2": ("subsecond.models",),
    "huggingface_hub": ("subsecond.models",),
    "tqdm": ("subsecond.cli",),
    "ray": ("subsecond.cluster",),
    "llguidance": ("subsecond.engine.grammar",),
    "starlette": ("subsecond.serve",),
    "uvicorn": ("subsecond.serve",),
    "msgspec": ("subsecond.serve",),
    "prometheus_client": ("subsecond.serve",),
    "subsecond._native": ("subsecond.backends.native", "subsecond.backends.sampling"),
}
UNPICKLERS = frozenset({"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"})


def layer(module: str) -> str | None:
    """Return the layer a module of the package belongs to; None for the package itself and its extension."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROW_BY_PACKAGE else None


def is_inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer_fault(importer: str, found: Import) -> str | None:
    """Return what is wrong with an import inside the package, or None."""
    source, target = layer(importer), layer(found.module)
    if source is None or target is None or source == target:
        return None
    if ROW_BY_PACKAGE[source] < ROW_BY_PACKAGE[target]:
        return None
    relation = "beside" if ROW_BY_PACKAGE[source] == ROW_BY_PACKAGE[target] else "above"
    return f"{found.place}: {importer} imports {found.module}, but {target} stands {relation} {source}"


def door_fault(importer: str, found: Import) -> str | None:
    """Return what is wrong with an import of a third party or of the extension, or None."""
    name = "subsecond._native" if is_inside(found.module, "subsecond._native") else found.module.split(".")[0]
    if name in UNPICKLERS:
        return f"{found.place}: {name} executes what it reads; store JSON or safetensors"
    if name == "subsecond" or name in sys.stdlib_module_names:
        return None
    doors = DOORS.get(name, ())
    if any(is_inside(importer, door) for door in doors):
        return None
    allowed = ", ".join(doors) or "nowhere in src/ (it is no dependency of the package)"
    return f"{found.place}: {importer} imports {name}; allowed: {allowed}"


def test_every_package_has_a_layer() -> None:
    entries = [path for path in PACKAGE.iterdir() if not path.name.startswith(("_", "."))]
    names = {path.stem for path in entries if path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.py")))}
    unplaced = sorted(names - set(ROW_BY_PACKAGE))
    assert not unplaced, report("Every package and top module has a row in LAYERS of this file; without one:", unplaced)


def test_imports_point_downwards() -> None:
    found = [layer_fault(module_name(path), item) for path in python_files(PACKAGE) for item in imports(path)]
    faults = [fault for fault in found if fault]
    assert not faults, report(LAYER_RULE, faults)


def test_third_parties_have_one_door() -> None:
    found = [door_fault(module_name(path), item) for path in python_files(PACKAGE) for item in imports(path)]
    faults = [fault for fault in found if fault]
    assert not faults, report("Each third party is imported behind its door only:", faults)


def test_nothing_is_unpickled_outside_the_package_either() -> None:
    files = python_files(ROOT / "tests", ROOT / "tools", ROOT / "bench")
    faults = [item.place for path in files for item in imports(path) if item.module.split(".")[0] in UNPICKLERS]
    assert not faults, report("Nothing is ever unpickled:", faults)


def test_only_bindings_know_python() -> None:
    faults = []
    for path in cpp_files(NATIVE):
        if path.name.startswith("bindings"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if line.startswith("#include") and ("Python.h" in line or "nanobind" in line):
                faults.append(f"{relative(path)}:{number}: {line.strip()}")
    assert not faults, report("Only native/bindings*.cpp may include Python or nanobind:", faults)


@pytest.mark.parametrize(
    ("importer", "target", "is_fault"),
    [
        ("subsecond.engine.scheduler", "subsecond.core.errors", False),
        ("subsecond.engine.scheduler", "subsecond.engine.request", False),
        ("subsecond.core.errors", "subsecond.formats.gguf", True),
        ("subsecond.apps.translation", "subsecond.optimize.goal", True),
        ("subsecond.api", "subsecond.cli.main", True),
        ("subsecond", "subsecond.api", False),
    ],
)
def test_the_layer_check_sees_a_breach(importer: str, target: str, is_fault: bool) -> None:
    assert bool(layer_fault(importer, Import(PACKAGE / "example.py", 1, target))) is is_fault


@pytest.mark.parametrize(
    ("importer", "target", "is_fault"),
    [
        ("subsecond.backends.torch.executor", "torch.nn", False),
        ("subsecond.backends.native.executor", "torch", True),
        ("subsecond.backends.torchlike", "torch", True),
        ("subsecond.models.tokenizer", "transformers", True),
        ("subsecond.engine.sampler", "subsecond._native.sample", True),
        ("subsecond.core.settings", "pickle", True),
        ("subsecond.core.settings", "json", False),
    ],
)
def test_the_door_check_sees_a_breach(importer: str, target: str, is_fault: bool) -> None:
    assert bool(door_fault(importer, Import(PACKAGE / "example.py", 1, target))) is is_fault
