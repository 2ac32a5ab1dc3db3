"""Project rules beyond the linters: sizes, direction of imports, forbidden imports, forbidden paths."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "linnaeus"

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50
MAX_PARAMETERS = 7
COMMAND = "one parameter per option of the command"
# Functions that may exceed the number of parameters, each with its reason; at most ten.
MANY_PARAMETERS = {
    "cli/evaluate.py evaluate": COMMAND,
    "cli/explain.py explain": COMMAND,
    "cli/export.py export": COMMAND,
    "cli/main.py train": COMMAND,
    "cli/predict.py predict": COMMAND,
    "cli/serve.py serve": COMMAND,
    "cli/sweep.py sweep": COMMAND,
    "sklearn/__init__.py __init__": "scikit-learn requires every parameter of an estimator as a keyword of its own",
    "sweeps/run.py sweep": "public API: the keywords of linnaeus.sweep",
    "training/run.py train": "public API: the keywords of linnaeus.train",
}

# A module may import from its own row and from the rows above it, never from a row below.
LAYERS = (
    ("_version", "errors", "text", "theme"),
    ("console", "environment", "network_names"),
    ("files", "device", "metrics", "recipe"),
    ("cache",),
    ("distributed", "data", "augment", "models"),
    ("preprocess",),
    ("modelfile", "stores"),
    ("inference",),
    ("check",),
    ("explain", "runs"),
    ("report",),
    ("training",),
    ("probe", "sweeps", "sklearn"),
    ("export",),
    ("serve",),
    ("label", "web"),
    ("cli", "__main__"),
)
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}

# Uses torch to compute batches; all other modules in data/ are readers without torch.
WITH_TORCH = {"batches"}

FILES = sorted(SRC.rglob("*.py"))

# A percentage in a format specification; text.py contains the one formatter.
PERCENT = re.compile(r":[^{}\"]*\.?\{?\w*\}?%\}|\{100 \* [^}]*\} ?%")


def module_of(file: Path) -> tuple[str, ...]:
    """('data', 'table') of src/linnaeus/data/table.py; ('data',) of data/__init__.py; () of the package itself."""
    parts = file.relative_to(SRC).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


@cache
def nodes_of(file: Path) -> list[ast.AST]:
    """What the rules are about, found once for all tests: the imports, functions and calls of a file."""
    wanted = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.Call
    return [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, wanted)]


def imports_of(file: Path, source: str | None = None) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, parts of the absolute dotted name) for each import of a file, also inside functions."""
    package = ("linnaeus", *module_of(file))
    if file.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(source)) if source else nodes_of(file):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, tuple(name.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = (*base, *(node.module or "").split(".")) if node.module else base
            for name in node.names:
                yield node.lineno, (*start, name.name)


def against_the_layers(file: Path, source: str | None = None) -> list[str]:
    here = module_of(file)
    violations = []
    for line, name in imports_of(file, source):
        if name[0] != "linnaeus" or len(name) < 2:
            continue
        place = f"{file.relative_to(ROOT)}:{line}"
        if name[1] in RANK and RANK[name[1]] > RANK[here[0]]:
            violations.append(f"{place}: {here[0]} imports {name[1]}, which is in a later row")
        elif name[1] not in RANK:  # a public name of the package, whose lazy import hides the module that defines it
            violations.append(f"{place}: import {'.'.join(name)} from the module that defines it")
        elif here[0] == "models" and name[1] in ("recipe", "data"):
            violations.append(f"{place}: models must not import {name[1]}")
    return violations


def imported(file: Path, *names: str) -> list[str]:
    """The places where a file imports one of these top-level modules."""
    return [
        f"{file.relative_to(ROOT)}:{line}: {name[0]}"
        for line, name in imports_of(file)
        if name[0] in names and name[-1] != "UnpicklingError"
    ]


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 20


def functions_of(file: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(`package/file.py name`, definition) of every function and method of a file."""
    for node in nodes_of(file):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{file.relative_to(SRC).as_posix()} {node.name}", node


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Names of a function's parameters, without self and cls."""
    arguments = function.args
    variadic = [arg for arg in (arguments.vararg, arguments.kwarg) if arg is not None]
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *variadic]
    return [arg.arg for arg in every if arg.arg not in ("self", "cls")]


def test_files_are_short_enough_to_read() -> None:
    lines = {str(f.relative_to(ROOT)): len(f.read_text(encoding="utf-8").splitlines()) for f in FILES}
    assert {name: n for name, n in lines.items() if n > MAX_FILE_LINES} == {}


def test_functions_are_short_enough_to_read() -> None:
    lines = [(name, (d.end_lineno or 0) - d.lineno + 1) for f in FILES for name, d in functions_of(f)]
    assert [(name, n) for name, n in lines if n > MAX_FUNCTION_LINES] == []


def test_functions_take_few_parameters() -> None:
    counts = [(name, len(parameters_of(d))) for f in FILES for name, d in functions_of(f)]
    assert {name for name, n in counts if n > MAX_PARAMETERS} == MANY_PARAMETERS.keys()
    assert len(MANY_PARAMETERS) <= 10


def test_every_kind_of_parameter_counts() -> None:
    function = ast.parse("def f(self, a, /, b, *c, d=1, **e): ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    assert parameters_of(function) == ["a", "b", "d", "c", "e"]


def test_every_module_is_in_a_layer() -> None:
    places = {module_of(f)[0] for f in FILES if module_of(f)}
    assert places - set(RANK) == set(), "add them to a row of LAYERS"


def test_imports_follow_the_order_of_layers() -> None:
    assert [line for f in FILES if module_of(f) for line in against_the_layers(f)] == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("data/table.py", "from linnaeus.training.loop import fit"),
        ("data/table.py", "def f():\n    from .. import cli"),
        ("data/table.py", "from ..stores.pixels import build_pixels"),
        ("data/__init__.py", "from ..stores import pixels"),
        ("models/resnet.py", "import linnaeus.data.table"),
        ("models/resnet.py", "from linnaeus.recipe import Recipe"),
        ("inference/classifier.py", "from linnaeus import report"),
        ("inference/classifier.py", "from linnaeus import load_recipe"),
    ],
)
def test_imports_against_the_order_are_detected(file: str, source: str) -> None:
    assert len(against_the_layers(SRC / file, source)) == 1


@pytest.mark.parametrize(
    "source", ["from .table import Table", "from ..errors import UserError", "import linnaeus.recipe"]
)
def test_imports_in_the_order_are_accepted(source: str) -> None:
    assert against_the_layers(SRC / "data" / "split.py", source) == []


def test_readers_do_not_import_torch() -> None:
    readers = [f for f in FILES if module_of(f)[:1] == ("data",) and f.stem not in WITH_TORCH]
    assert [line for f in readers for line in imported(f, "torch", *WITH_TORCH)] == []
    code = "import sys, linnaeus.data.sources, linnaeus.data.images.decode; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_metrics_need_numpy_and_scipy_only() -> None:
    """They can be read, tested and used alone: no torch, no data, no console."""
    metrics = [f for f in FILES if module_of(f)[:1] == ("metrics",)]
    allowed = {"numpy", "scipy", *sys.stdlib_module_names}
    for file in metrics:
        for line, name in imports_of(file):
            own = name[0] == "linnaeus" and name[1] in ("metrics", "errors", "text")
            assert own or name[0] in allowed, f"{file.relative_to(ROOT)}:{line}: {'.'.join(name)}"
    modules = ", ".join("linnaeus." + ".".join(module_of(f)) for f in metrics)
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_nothing_unpickles() -> None:
    banned = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
    assert [line for f in FILES for line in imported(f, *banned)] == []
    unsafe = []
    for file in FILES:
        for node in nodes_of(file):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                arguments = {k.arg: ast.unparse(k.value) for k in node.keywords}
                safe = arguments.get("weights_only") == "True" or (
                    ast.unparse(node.func) != "torch.load" and arguments.get("allow_pickle", "False") == "False"
                )
                if not safe:
                    unsafe.append(f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert unsafe == []


def test_console_is_the_only_module_that_prints() -> None:
    """It knows what to do where a stream is missing, closed, full or not read any more."""
    for file in FILES:
        if module_of(file) != ("console",):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.])print\(|click\.s?echo\(|sys\.std(out|err)\.(write|flush)", text), file


def test_percentages_have_one_formatter() -> None:
    """A format such as `{:.1%}` turns 0.9996 into 100.0%; `linnaeus.text.percent` does not."""
    for file in FILES:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            assert not PERCENT.search(line), f"{file.relative_to(ROOT)}:{number}: use percent of linnaeus.text"


def test_torchvision_is_not_imported() -> None:
    assert [line for f in FILES for line in imported(f, "torchvision")] == []


# Paths that exist on one machine only, written in parts so that this file does not contain them.
MACHINE = re.compile("|".join((r"(?<![\w.])/wo" + r"rk/", r"/tmp" + r"/w\b")))
DATA = re.compile("shared" + "/data")
MAY_NAME_DATA = ("tests", "benchmarks", "experiments")
SKIPPED = {"build", "dist", "runs", "site", "__pycache__"}


def texts() -> Iterator[tuple[Path, str]]:
    """(path relative to the root, text) for every text file of the project."""
    for top in sorted(ROOT.iterdir()):
        if top.name in SKIPPED or (top.name.startswith(".") and top.name not in (".ci", ".github", ".gitignore")):
            continue
        for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if file.is_file() and not SKIPPED & set(file.parts[len(ROOT.parts) : -1]):
                try:
                    yield file.relative_to(ROOT), file.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue  # an image or other binary data


def test_no_path_of_one_machine_is_named() -> None:
    violations = []
    for file, text in texts():
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE.search(line) or (DATA.search(line) and file.parts[0] not in MAY_NAME_DATA):
                violations.append(f"{file}:{number}: {line.strip()[:80]}")
    assert violations == []


def test_paths_of_one_machine_are_recognized() -> None:
    assert MACHINE.search("cd /wo" + "rk/main")
    assert MACHINE.search("/tmp" + "/w/plots")
    assert not MACHINE.search("net/work/x ../network/ /tmp/weights")
    assert DATA.search("../shared" + "/data/mnist")
