"""The house: who may import whom, what the method may know, and how large a room may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lplgrad_backend"

# Each module imports only from its own floor or from floors before it. A folder stands for all that is in it.
FLOORS = (
    ("__init__", "errors"),
    ("lplgrad",),
    (
        "files",
        "checkpoint_file",
        "settings",
        "labeling",
        "locks",
        "scratch",
        "store",
        "served",
        "comparison",
        "history",
        "random_share",
        "chronicle",
        "status",
        "labelstudio",
        "pretrained",
        "processors",
        "logs",
    ),
    ("public_addresses", "public_web", "image_source", "image_decoding", "image_cache", "images", "sources"),
    (
        "notice",
        "publication",
        "scoring",
        "latecomers",
        "export",
        "examination",
        "rounds",
        "shards",
        "preparation",
        "frozen_features",
        "cold_order",
        "shared_scoring",
        "sight",
        "together",
        "resumption",
        "rank",
        "launcher",
        "trainer",
        "memory",
        "unlabelled",
        "first_queue",
        "predictor",
        "decision",
        "draft",
        "outdated",
        "learner",
        "assistance",
    ),
    ("simulation", "connection"),
    ("jobs", "worker", "service"),
    ("doctor",),
    ("backend",),
    ("dashboard", "metrics"),
    ("embedded", "bodies", "openapi", "api", "serving"),
    ("demo",),
    ("cli", "__main__"),
)

# Libraries that only the modules named here import.
ONLY_IN = {
    "huey": {"jobs"},
    "label_studio_ml": {"backend"},
    "PIL": {"image_decoding", "demo"},
    "requests": {"labelstudio", "public_web", "demo"},
    "pydantic_settings": {"settings"},
    "typer": {"cli"},
    "falcon": {"api", "dashboard", "serving"},
}

# What the method cannot need, since it knows tensors only.
WORLD = {"json", "logging", "os", "pathlib", "requests", "shutil", "socket", "sqlite3", "subprocess", "urllib"}

MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = ("lplgrad_backend", "tests", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def dotted(path: Path) -> str:
    """`lplgrad_backend.demo.run` for lplgrad_backend/demo/run.py, `lplgrad_backend.demo` for its `__init__`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    """The entry of `FLOORS` that a module of this package belongs to."""
    return module.removeprefix(PACKAGE.name).strip(".").split(".")[0] or "__init__"


def floor(module: str) -> int:
    return next((number for number, rooms in enumerate(FLOORS) if room(module) in rooms), -1)


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of all that is imported; `from a import b` counts as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def imported_modules(path: Path) -> set[str]:
    """The package's own modules that this one imports."""
    known = {dotted(module) for module in MODULES}
    found = set()
    for name in imported(ast.parse(path.read_text())):
        if name.startswith(PACKAGE.name):
            found.add(name if name in known else name.rpartition(".")[0])
    return found


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_every_module_has_a_floor(path: Path) -> None:
    assert floor(dotted(path)) >= 0, f"say in FLOORS where {dotted(path)} stands"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_arrows_point_down(path: Path) -> None:
    upward = {module for module in imported_modules(path) if floor(module) > floor(dotted(path))}
    assert not upward


def test_nothing_imports_itself_in_a_circle() -> None:
    arrows = {dotted(path): imported_modules(path) - {dotted(path)} for path in MODULES}
    while leaves := {module for module, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {module: targets for module, targets in arrows.items() if module not in leaves}
    assert not arrows, f"a circle among {sorted(arrows)}"


@pytest.mark.parametrize("path", SOURCES, ids=dotted)
def test_imports_stand_at_the_top(path: Path) -> None:
    inside = [
        f"{function.name}: {name}"
        for function in functions(ast.parse(path.read_text()))
        for name in imported(function)
    ]  # fmt: skip
    assert not inside


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_library_enters_in_one_place(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
    misplaced = {library for library in libraries & ONLY_IN.keys() if room(dotted(path)) not in ONLY_IN[library]}
    assert not misplaced


# What turns bytes into running code, as it is called. torch.load is allowed where it reads tensors alone.
EXECUTING = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load",
    "np.load", "numpy.load", "yaml.load", "torch.load", "torch.jit.load", "torch.hub.load", "eval", "exec", "compile",
    "os.system", "os.popen",
}  # fmt: skip


def unsafe_calls(tree: ast.AST) -> list[str]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call)
        for call in calls
        if (
            ast.unparse(call.func) in EXECUTING
            and not (ast.unparse(call.func) == "torch.load" and "weights_only=True" in map(ast.unparse, call.keywords))
        )
        or any(ast.unparse(keyword) == "shell=True" for keyword in call.keywords)
    ]


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_nothing_is_unpickled_or_run(path: Path) -> None:
    assert not unsafe_calls(ast.parse(path.read_text()))


@pytest.mark.parametrize(
    ("code", "safe"),
    [
        ("pickle.loads(x)", False),
        ("torch.load(x)", False),
        ("torch.load(x, weights_only=True)", True),
        ("subprocess.run(x, shell=True)", False),
        ("subprocess.run(x)", True),
        ("network.eval()", True),
    ],
)
def test_what_counts_as_unsafe(code: str, safe: bool) -> None:
    assert bool(unsafe_calls(ast.parse(code))) is not safe


@pytest.mark.parametrize("path", sorted((PACKAGE / "lplgrad").rglob("*.py")), ids=dotted)
def test_the_method_knows_tensors_only(path: Path) -> None:
    tree = ast.parse(path.read_text())
    outside = {module for module in imported_modules(path) if room(module) not in ("lplgrad", "errors")}
    assert not outside
    assert not WORLD & {name.split(".")[0] for name in imported(tree)}
    literals = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert "cuda" not in literals


@pytest.mark.parametrize("path", SOURCES, ids=dotted)
def test_rooms_are_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, "modules have at most 400 lines"
    long = {
        function.name: length
        for function in functions(ast.parse(text))
        if function.end_lineno and (length := function.end_lineno - function.lineno + 1) > 60
    }
    assert not long, "functions have at most 60 lines"


@pytest.mark.parametrize("path", SOURCES, ids=dotted)
def test_names_say_what_a_module_is_about(path: Path) -> None:
    assert not {"utils", "helpers", "manager", "common", "misc"} & {path.stem, *path.stem.split("_")}
