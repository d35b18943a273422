"""Imports point one way, third-party libraries stay in their rooms, and ``import ambient_mri`` is light.

The package is parsed, never imported, for the first two, so that an import inside a function counts like any other.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ambient_mri"

# A unit is a module or subpackage directly under ambient_mri. Layers are listed from the lowest to the highest: a unit
# may import lower layers and its own, and within a layer no two units import each other, directly or through others.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"_checks", "_files", "tensors"}),
    frozenset({"measurement", "operators", "masks", "noise", "networks", "metrics", "stationary", "uncertainty"}),
    frozenset({"corruption", "coil_maps", "data", "denoiser", "baselines"}),
    frozenset({"objectives", "prior", "prepare", "comparators"}),
    frozenset({"sampling"}),
    frozenset({"reconstruct", "solve"}),
    frozenset({"report"}),
    frozenset({"training", "evaluation"}),
    frozenset({"train", "demo", "cli", "__main__"}),
)
LAYER_OF = {unit: depth for depth, units in enumerate(LAYERS) for unit in units}

# The package's face: it names everything (lazily) and nothing inside the package may import it.
SURFACE = "__init__"

# Upward imports that a public method needs; inside a function only, so that importing the module stays one-way.
LAZY_UPWARD = {
    ("reconstruct", "report"),  # Reconstruction.report("out.html")
}

# Third-party library -> the only places that may import it, as paths below ambient_mri ("folder/" for a subpackage).
PLACES: dict[str, tuple[str, ...]] = {
    "pytorch_lightning": ("training/", "train.py"),
    "lightning": ("training/", "train.py"),
    "lightning_fabric": ("training/", "train.py"),
    "hydra": ("training/", "train.py"),
    "omegaconf": ("training/", "train.py"),
    "matplotlib": ("report/",),
    "sigpy": ("operators/sigpy_adapter.py", "coil_maps/", "baselines.py"),
    "h5py": ("data/",),
    "torchvision": (),
    "fastmri": (),
}

HEAVY = ("matplotlib", "sigpy", "h5py", "pytorch_lightning", "hydra", "scipy", "skimage", "numba", "torchvision")


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, the line, and whether it runs only when a function is called."""

    name: str
    line: int
    lazy: bool


def imports_of(source: str, package: str) -> list[Import]:
    """Every module that ``source`` imports, absolute names; ``package`` is the dotted package that holds it.

    ``from package import name`` gives ``package.name``, whether name is a module or not: the unit and the library are
    read from the front. ``importlib.import_module("literal")`` counts too.
    """
    return list(_walk(ast.parse(source), package.split("."), lazy=False))


def _walk(node: ast.AST, package: list[str], lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            # Level 1 is the package itself, every further dot one package up.
            parents = package[: len(package) - child.level + 1] if child.level else []
            base = [*parents, child.module] if child.module else parents
            yield from (Import(".".join([*base, alias.name]), child.lineno, lazy) for alias in child.names)
        elif isinstance(child, ast.Call) and (name := _dynamic_import(child)):
            yield Import(name, child.lineno, lazy)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _walk(child, package, lazy or inside)


def _dynamic_import(call: ast.Call) -> str | None:
    """The literal of ``import_module("literal")`` or ``__import__("literal")``; relative names are left alone."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if function not in ("import_module", "__import__") or not call.args:
        return None
    value = getattr(call.args[0], "value", None)
    return value if isinstance(value, str) and not value.startswith(".") else None


def unit_of(path: Path) -> str:
    """The unit that a file below the package belongs to: its first folder, or its own stem."""
    return path.parts[0].removesuffix(".py")


def upward(unit: str, found: Iterable[Import]) -> list[str]:
    """Sentences on imports of ``unit`` that break the order; empty when it is kept."""
    problems = []
    for item in found:
        parts = item.name.split(".")
        if parts[0] != "ambient_mri":
            continue
        target = parts[1] if len(parts) > 1 else SURFACE
        if target not in LAYER_OF:
            problems.append(f"line {item.line} imports {item.name}: inside the package, import from a module by name")
        elif LAYER_OF[target] > LAYER_OF[unit] and not (item.lazy and (unit, target) in LAZY_UPWARD):
            problems.append(f"line {item.line} imports {item.name}: {unit} lies below {target}")
    return problems


def misplaced(path: str, found: Iterable[Import]) -> list[str]:
    """Sentences on third-party imports in the file ``path`` (below the package) that belong elsewhere."""
    problems = []
    for item in found:
        places = PLACES.get(item.name.split(".")[0])
        if places is None or any(path == place or (place[-1] == "/" and path.startswith(place)) for place in places):
            continue
        allowed = ", ".join(places) or "nowhere in the package"
        problems.append(f"line {item.line} imports {item.name}; it belongs in: {allowed}")
    return problems


def module_files() -> list[str]:
    """Every module below the package, as POSIX paths."""
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imports_of_file(name: str) -> list[Import]:
    path = Path(name)
    package = ".".join(("ambient_mri", *path.parts[:-1]))
    return imports_of((PACKAGE / path).read_text(encoding="utf-8"), package)


def test_every_module_has_a_layer() -> None:
    unknown = sorted({unit_of(Path(name)) for name in module_files()} - LAYER_OF.keys() - {SURFACE})
    assert not unknown, (
        f"{unknown} have no place in the import order. Add each to a layer of LAYERS in tests/test_imports.py, "
        "as low as its imports allow."
    )


@pytest.mark.parametrize("name", module_files())
def test_imports_point_one_way(name: str) -> None:
    unit = unit_of(Path(name))
    if unit == SURFACE or unit not in LAYER_OF:
        return  # the surface imports everything; a missing layer is the business of the test above
    problems = upward(unit, imports_of_file(name))
    assert not problems, f"ambient_mri/{name}: " + "; ".join(problems)


def test_units_of_one_layer_form_no_cycle() -> None:
    edges: dict[str, set[str]] = {}
    for name in module_files():
        unit = unit_of(Path(name))
        targets = (item.name.split(".")[1:2] for item in imports_of_file(name) if item.name.startswith("ambient_mri."))
        edges.setdefault(unit, set()).update(target[0] for target in targets if target[0] != unit)
    cycle = find_cycle({unit: targets for unit, targets in edges.items() if unit in LAYER_OF})
    assert not cycle, "these import each other: " + " -> ".join(cycle)


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """A cycle among units of one layer, its first unit repeated at the end; empty when there is none."""
    done: set[str] = set()

    def visit(unit: str, trail: list[str]) -> list[str]:
        if unit in trail:
            return [*trail[trail.index(unit) :], unit]
        if unit in done:
            return []
        for target in sorted(edges.get(unit, ())):
            same_layer = LAYER_OF.get(target) == LAYER_OF[unit]
            if same_layer and (cycle := visit(target, [*trail, unit])):
                return cycle
        done.add(unit)
        return []

    return next((cycle for unit in sorted(edges) if (cycle := visit(unit, []))), [])


@pytest.mark.parametrize("name", module_files())
def test_libraries_stay_in_their_place(name: str) -> None:
    problems = misplaced(name, imports_of_file(name))
    assert not problems, f"ambient_mri/{name}: " + "; ".join(problems)


def test_importing_the_package_is_light() -> None:
    code = f"import ambient_mri, sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), f"import ambient_mri also loads {done.stdout.strip()}; make those imports lazy"


@pytest.mark.parametrize(
    ("unit", "source", "problem"),
    [
        ("masks", "from ambient_mri.corruption import Undersampling", "line 1 .* masks lies below corruption"),
        ("masks", "import ambient_mri.sampling.heun", "masks lies below sampling"),
        ("masks", "from .denoiser import Denoiser", "masks lies below denoiser"),
        ("masks", "from . import cli", "masks lies below cli"),
        ("masks", "def f():\n    from ambient_mri import prior", "line 2 .* masks lies below prior"),
        ("masks", "import importlib\nimportlib.import_module('ambient_mri.train')", "masks lies below train"),
        ("masks", "from ambient_mri import reconstruction", "import from a module by name"),
        ("masks", "import ambient_mri", "import from a module by name"),
        ("reconstruct", "from ambient_mri.report import html", "reconstruct lies below report"),
    ],
)
def test_an_upward_import_is_found(unit: str, source: str, problem: str) -> None:
    problems = upward(unit, imports_of(source, "ambient_mri"))
    assert len(problems) == 1
    assert re.search(problem, problems[0])


@pytest.mark.parametrize(
    ("unit", "source"),
    [
        ("masks", "from ambient_mri._checks import require\nimport numpy as np"),
        ("cli", "from ambient_mri import train"),
        ("reconstruct", "def report():\n    from ambient_mri.report import html"),
    ],
)
def test_a_downward_import_is_let_through(unit: str, source: str) -> None:
    assert upward(unit, imports_of(source, "ambient_mri")) == []


@pytest.mark.parametrize(
    ("path", "source", "count"),
    [
        ("prior.py", "import pytorch_lightning as pl", 1),
        ("training/module.py", "import pytorch_lightning as pl", 0),
        ("cli/commands.py", "def f():\n    import matplotlib.pyplot as plt", 1),
        ("cli/commands.py", "def f():\n    import hydra", 1),
        ("coil_maps/backends.py", "import sigpy", 0),
        ("report/plots.py", "from matplotlib import pyplot", 0),
        ("operators/sigpy_adapter.py", "import sigpy", 0),
        ("operators/sense.py", "from sigpy.mri import linop", 1),
        ("data/readers/fastmri.py", "import h5py", 0),
        ("data/readers/fastmri.py", "from . import fastmri", 0),
        ("reconstruct.py", "import h5py", 1),
        ("training/module.py", "import torchvision.ops", 1),
    ],
)
def test_placement_rules(path: str, source: str, count: int) -> None:
    package = ".".join(("ambient_mri", *Path(path).parts[:-1]))
    assert len(misplaced(path, imports_of(source, package))) == count


def test_every_place_exists() -> None:
    named = {place for places in PLACES.values() for place in places if not place.startswith("lightning")}
    assert [place for place in sorted(named) if not (PACKAGE / place).exists()] == []


def test_a_cycle_within_a_layer_is_named() -> None:
    assert find_cycle({"data": {"coil_maps"}, "coil_maps": {"corruption"}, "corruption": {"data"}}) == [
        "coil_maps",
        "corruption",
        "data",
        "coil_maps",
    ]
    assert find_cycle({"data": {"coil_maps", "corruption"}, "coil_maps": {"corruption"}}) == []
