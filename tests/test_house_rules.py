"""The rules of the house that no linter knows."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ray_snake"
MODULES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = sorted(one.parent.name for one in PACKAGE.glob("*/__init__.py"))
MOST_LINES = 450
# Where the actors live and the cluster is asked; all else works without Ray.
SHELLS = {
    "actors",
    "answers",
    "cluster",
    "connection",
    "driver_actor",
    "embedded",
    "jobs",
    "launch",
    "meter",
    "on_machines",
    "ray_meters",
}
# What the driver consists of: it does no tensor maths.
DRIVER_SIDE = {
    "acceptance",
    "claim",
    "committer",
    "crew",
    "driver",
    "events",
    "handles",
    "journal",
    "messages",
    "metrics",
    "recorder",
    "registrar",
    "requests",
    "resume",
    "roster",
    "states",
    "supply",
}
LOADS_CODE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def name_of(path):
    return str(path.relative_to(ROOT).with_suffix("")).replace(os.sep, ".")


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def runtime_nodes(tree):
    """All nodes but those that only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (inner for other in node.orelse for inner in ast.walk(other))
            continue
        yield node
        yield from runtime_nodes(node)


def imports(path):
    """Full names of all modules that a file imports anywhere, inside its functions too."""
    found = set()
    for node in runtime_nodes(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top_level(path):
    return {name.partition(".")[0] for name in imports(path)}


def modules_of(package):
    return sorted((PACKAGE / package).rglob("*.py"))


def import_in_a_fresh_process(names):
    """Import modules in a new interpreter; return which of ray and torch came along."""
    code = (
        "import importlib, sys\n"
        f"for name in {sorted(names)!r}: importlib.import_module(name)\n"
        "print(*sorted({'ray', 'torch'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_the_rules_look_at_something():
    assert {"planning", "engine", "layers", "runtime", "models", "data"} <= set(PACKAGES)
    assert {one.stem for one in modules_of("runtime")} >= DRIVER_SIDE | SHELLS
    assert "ray" in top_level(PACKAGE / "runtime/launch.py")
    assert "torch" in top_level(PACKAGE / "runtime/recipe.py")


@pytest.mark.parametrize("path", [*modules_of("planning"), *modules_of("baselines")], ids=name_of)
def test_planning_imports_neither_ray_nor_torch(path):
    assert not top_level(path) & {"ray", "torch"}


@pytest.mark.parametrize("package", ["engine", "models", "layers", "data"])
def test_algorithms_never_import_ray(package):
    assert not [name_of(path) for path in modules_of(package) if "ray" in top_level(path)]


def test_only_the_shells_of_the_runtime_import_ray():
    importing = {path.stem for path in modules_of("runtime") if "ray" in top_level(path)}
    assert importing == SHELLS


def test_the_drivers_side_imports_no_torch():
    paths = [path for path in modules_of("runtime") if path.stem in DRIVER_SIDE]
    assert not [name_of(path) for path in paths if "torch" in top_level(path)]


def test_planning_and_the_drivers_side_bring_neither_ray_nor_torch_along():
    names = [
        name_of(path.parent if path.stem == "__init__" else path)
        for path in [*modules_of("planning"), *modules_of("baselines")]
    ]
    names += [f"ray_snake.runtime.{stem}" for stem in DRIVER_SIDE]
    names += ["ray_snake.runtime.preflight", "ray_snake.simulation.simulator"]
    names += ["ray_snake", "ray_snake.config", "ray_snake.layers.ledger", "ray_snake.layers.state"]
    assert import_in_a_fresh_process(names) == set()


def test_the_command_line_starts_without_ray_and_torch():
    assert import_in_a_fresh_process(["ray_snake.cli.main"]) == set()


def test_starting_the_driver_brings_no_torch_along():
    names = ["ray_snake.runtime.driver_actor", "ray_snake.trainer"]
    assert import_in_a_fresh_process(names) == {"ray"}


def test_packages_import_only_those_below_them():
    # The settings are below everything.
    below = {
        "planning": {"planning"},
        "baselines": {"baselines", "planning"},
        "config": {"config"},
        "layers": {"layers"},
        "models": {"models"},
        "data": {"data"},
        "engine": {"engine", "planning"},
        "telemetry": {"telemetry", "runtime", "planning"},
        "simulation": {"simulation", "planning", "runtime"},
        "runtime": {"runtime", "planning", "layers", "engine", "data", "models"},
    }
    for package, allowed in below.items():
        for path in modules_of(package):
            own = {name.split(".")[1] for name in imports(path) if name.startswith("ray_snake.")}
            assert own & set(PACKAGES) <= {*allowed, "config"}, name_of(path)


def test_telemetry_reads_only_what_the_journal_and_events_say():
    allowed = {"events", "journal", "records"}
    for path in modules_of("telemetry"):
        own = {
            name.split(".")[2] for name in imports(path) if name.startswith("ray_snake.runtime.")
        }
        assert own <= allowed, name_of(path)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_unpickled(path):
    assert not top_level(path) & LOADS_CODE
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "torch.load"
            assert not any("allow_pickle" in (word.arg or "") for word in node.keywords)
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            assert "load" not in {alias.name for alias in node.names}


def test_no_module_is_too_long():
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    assert not {name: lines for name, lines in lengths.items() if lines > MOST_LINES}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_tests_in_its_own_folder(package):
    assert list((ROOT / "tests" / package).glob("test_*.py"))


def test_test_files_have_names_of_their_own():
    # pytest imports test files by their bare name.
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_no_test_is_skipped_or_expected_to_fail():
    # Written apart, so that this file does not find itself.
    marks = {"sk" + "ip", "sk" + "ipif", "x" + "fail", "importor" + "skip"}
    for path in (ROOT / "tests").rglob("*.py"):
        used = {node.attr for node in ast.walk(parse(path)) if isinstance(node, ast.Attribute)}
        assert not used & marks, name_of(path)
