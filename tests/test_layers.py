"""The import rule: a room imports lower rooms only, and imports stand at the top of a file."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "groundup"

# Low to high. Rooms on one line never import each other.
LAYERS = (
    ("environ",),
    ("config", "device", "files", "native"),
    ("tensorfile", "step_folders", "gguf", "bundled"),
    ("tokenizer", "kernels"),
    ("model", "optim", "corpus"),
    ("presets",),
    ("data", "parallel", "accounting"),
    ("planning",),
    ("train", "inference"),
    ("evaluation", "profiling"),
    ("scaling", "compression"),
    ("alignment",),
    ("recipes",),
    ("report", "web", "bench", "inspection"),
    ("build",),
    ("cli",),
)
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}

# What a user may not have (packages, and standard modules of one platform only): imported where it is used.
OPTIONAL = {
    "pyarrow",
    "tensorboard",
    "torch.utils.tensorboard",
    "wandb",
    "transformers",
    "litgpt",
    "resource",
    "fcntl",
    # Here, but slow to import: only where code is compiled or loaded.
    "llvmlite.binding",
    "numba",
}

FILES = sorted(PACKAGE.rglob("*.py"))


def imported_modules(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[ast.stmt, str]]:
    """Each import statement with every absolute dotted name that it may import; `package` resolves dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node, f"{module}.{alias.name}") for alias in node.names)


def room_of(module: str) -> str | None:
    """The room that an absolute name is in; `groundup.__version__` is in none."""
    first, _, rest = module.partition(".")
    return room_named(rest.split(".")[0]) if first == "groundup" and not rest.startswith("__") else None


def room_named(name: str) -> str:
    """The room of a file or folder of the package: `cli.py` and the files named after it are one."""
    return "cli" if name.startswith("cli_") else name


def package_of(path: Path) -> tuple[str, ...]:
    return ("groundup", *path.relative_to(PACKAGE).parts[:-1])


def layer_faults(path: Path, tree: ast.AST) -> list[str]:
    room = room_named(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    if room == "__init__":
        return []
    if room not in RANK:
        return [f"{path}: room {room!r} has no layer; add it to LAYERS"]
    faults = []
    for node, module in imported_modules(tree, package_of(path)):
        other = room_of(module)
        if other not in (None, room) and RANK.get(other, len(LAYERS)) >= RANK[room]:
            faults.append(f"{path}:{node.lineno}: {room} imports {module}, which is not in a lower layer")
    return faults


def late_imports(path: Path, tree: ast.AST) -> list[str]:
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [
        f"{path}:{node.lineno}: import of {module} inside {function.name}()"
        for function in functions
        for node, module in imported_modules(function, package_of(path))
        if not any(f"{module}.".startswith(f"{name}.") for name in OPTIONAL)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_lower_rooms_only(path):
    assert layer_faults(path, ast.parse(path.read_text("utf-8"))) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_stand_at_the_top_except_optional_packages(path):
    if room_named(path.stem) == "cli":
        pytest.skip("the verb table imports a verb's room when the verb is called: help stays fast")
    assert late_imports(path, ast.parse(path.read_text("utf-8"))) == []


def test_the_model_knows_nothing_of_processes_kernels_languages_or_the_system():
    forbidden = {"torch.distributed", "triton", "numba", "os"}
    faults = [
        f"{path}:{node.lineno}: {module}"
        for path in (PACKAGE / "model").rglob("*.py")
        for node, module in imported_modules(ast.parse(path.read_text("utf-8")), package_of(path))
        if any(f"{module}.".startswith(f"{name}.") for name in forbidden)
    ]
    assert faults == []


def test_config_imports_only_the_standard_library():
    tree = ast.parse((PACKAGE / "config.py").read_text("utf-8"))
    roots = {module.split(".")[0] for _, module in imported_modules(tree, ("groundup",))}
    assert roots <= set(sys.stdlib_module_names)


def test_the_map_for_readers_shows_these_layers():
    page = (PACKAGE.parent.parent / "docs" / "architecture.md").read_text("utf-8")
    table = page.partition("## Layers")[2].split("```")[1].strip().splitlines()
    shown = [{word for word in line.split()[1:] if word in RANK} for line in reversed(table)]
    assert shown == [set(layer) for layer in LAYERS]


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("kernels/x.py", "from groundup.model import block", True),
        ("kernels/x.py", "from groundup import model", True),
        ("kernels/x.py", "import groundup.model.block", True),
        ("kernels/x.py", "from ..model.block import Block", True),
        ("kernels/x.py", "from .. import model", True),
        ("kernels/deep/x.py", "from ...model import block", True),
        ("train/x.py", "from groundup.inference.engine import Engine", True),
        ("model/x.py", "from groundup.corpus import document", True),
        ("build/x.py", "from groundup.cli_parts import Verb", True),
        ("cli.py", "from groundup.cli_parts import Verb", False),
        ("train/x.py", "from ..model.block import Block", False),
        ("train/x.py", "from . import loop", False),
        ("train/x.py", "from groundup.config import to_dict\nimport torch", False),
    ],
)
def test_the_rule_sees_absolute_and_relative_imports(file, source, fault):
    assert bool(layer_faults(PACKAGE / file, ast.parse(source))) is fault
