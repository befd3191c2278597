"""What no file of the package may contain, checked on its syntax tree.

Constructs that run untrusted input, that hide errors, or that bypass the one place meant to hold them.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "src" / "groundup"
FILES = sorted(PACKAGE.rglob("*.py"))

# Names that a file may not use at all; the exception is the one file that owns the thing.
FORBIDDEN_NAMES = {
    "pickle": None,
    "cPickle": None,
    "_pickle": None,
    "cloudpickle": None,
    "dill": None,
    "marshal": None,
    "shelve": None,
    "joblib": None,
    "torch.load": None,
    "torch.save": None,
    "torch.jit.load": None,
    "os.system": None,
    "os.popen": None,
    "yaml.load": None,
    "yaml.unsafe_load": None,
    "os.environ": "environ.py",
    "os.environb": "environ.py",
    "os.getenv": "environ.py",
    "os.putenv": "environ.py",
    "torch.nn.MultiheadAttention": None,
    "torch.nn.functional.multi_head_attention_forward": None,
    "torch.nn.functional.scaled_dot_product_attention": "kernels/attention.py",
}
FORBIDDEN_PREFIXES = ("torch.nn.Transformer", "torch.nn.modules.transformer")
FORBIDDEN_BUILTINS = {"eval", "exec", "__import__"}


def aliases(tree: ast.AST) -> dict[str, str]:
    """Local name -> what it stands for: `import torch.nn as nn` gives {"nn": "torch.nn"}."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                names[a.asname or a.name.split(".")[0]] = a.name if a.asname else a.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str | None:
    """`nn.functional.relu` as the full name that it means, or None for anything but names and attributes."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value, names)
        return f"{owner}.{node.attr}" if owner else None
    return None


def used_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    names = aliases(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{a.name}") for a in node.names)
        elif isinstance(node, ast.Attribute) and (name := dotted(node, names)):
            yield node.lineno, name


def name_faults(file: str, tree: ast.AST) -> Iterator[str]:
    for line, name in used_names(tree):
        for forbidden, owner in FORBIDDEN_NAMES.items():
            if f"{name}.".startswith(f"{forbidden}.") and file != owner:
                yield f"{file}:{line}: {name}"
        if name.startswith(FORBIDDEN_PREFIXES):
            yield f"{file}:{line}: {name}"


def call_faults(file: str, tree: ast.AST) -> Iterator[str]:
    names = aliases(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, names) or getattr(node.func, "attr", "")
        options = {k.arg: k.value for k in node.keywords}
        if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_BUILTINS - names.keys():
            yield f"{file}:{node.lineno}: {name}()"
        for option in ("shell", "allow_pickle", "trust_remote_code"):
            value = options.get(option)
            if value is not None and not (isinstance(value, ast.Constant) and not value.value):
                yield f"{file}:{node.lineno}: {name}({option}=...)"
        if name.endswith("extractall") and "filter" not in options:
            yield f"{file}:{node.lineno}: {name}() of an archive without filter="


def other_faults(file: str, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{file}:{node.lineno}: bare except"
        if isinstance(node, ast.Constant) and node.value == "0.0.0.0":
            yield f"{file}:{node.lineno}: listens on every interface"


def faults(file: str, source: str) -> list[str]:
    tree = ast.parse(source)
    return [*name_faults(file, tree), *call_faults(file, tree), *other_faults(file, tree)]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_forbidden_construct(path):
    assert faults(path.relative_to(PACKAGE).as_posix(), path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "import torch as t\nt.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "eval('1')",
        "exec('1')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import os\nos.system('ls')",
        "import os\nx = os.environ['HOME']",
        "from os import environ",
        "from os import getenv as g",
        "try:\n    pass\nexcept:\n    pass",
        "HOST = '0.0.0.0'",
        "import yaml\nyaml.load('x')",
        "import tarfile\ntarfile.TarFile.extractall(archive)",
        "import tarfile\ntarfile.open('x').extractall()",
        "tar.extractall('folder')",
        "from torch import nn\nnn.TransformerEncoder",
        "from torch import nn\nnn.MultiheadAttention(1, 1)",
        "import torch.nn.functional as F\nF.scaled_dot_product_attention",
        "from torch.nn.functional import scaled_dot_product_attention",
    ],
)
def test_the_gate_sees(source):
    assert faults("room/file.py", source)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("environ.py", "import os\nx = os.environ['HOME']"),
        ("kernels/attention.py", "import torch.nn.functional as F\nF.scaled_dot_product_attention"),
        ("room/file.py", "import re\nre.compile('x')\nmodel.eval()\nimport torch\ntorch.compile(model)"),
        ("room/file.py", "import numpy as np\nnp.load('x', allow_pickle=False)"),
        ("room/file.py", "from safetensors.torch import load_file, save_file\nload_file('x')"),
    ],
)
def test_the_gate_lets_through(file, source):
    assert faults(file, source) == []


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout: what belongs to the project is not known")
    return [REPOSITORY / name for name in listed.stdout.decode().split("\0") if name]


def test_no_path_of_one_machine_in_the_project():
    private = re.compile(r"(?<![\w.~*})/-])/" + "(?:work|root|home|Users)" + "/")
    found = []
    for path in tracked_files():
        if not path.is_file() or b"\0" in (data := path.read_bytes()):
            continue
        text = data.decode("utf-8", "replace")
        found += [f"{path}:{n}" for n, line in enumerate(text.splitlines(), 1) if private.search(line)]
    assert found == []


def loaded_after(program: str) -> tuple[int, set[str]]:
    """Run `program` in a fresh interpreter: the `code` that it sets, and which heavy packages it imported."""
    heavy = ("torch", "numpy", "matplotlib", "rich")
    report = f"import sys\nprint('loaded:', *(m for m in {heavy} if m in sys.modules))\nsys.exit(code)"
    command = [sys.executable, "-c", f"{program}\n{report}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("loaded:")]
    assert lines, done.stderr
    return done.returncode, set(lines[-1].split()[1:])


def test_import_groundup_imports_no_torch():
    code, loaded = loaded_after("import groundup\ncode = 0")
    assert code == 0
    assert loaded == set()


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"], ["bench"]])
def test_help_imports_no_torch(arguments):
    program = f"""
import sys
sys.argv = ["groundup", *{arguments!r}]
from groundup.cli import main
try:
    code = main()
except SystemExit as stop:
    code = stop.code
code = code or 0"""
    code, loaded = loaded_after(program)
    assert code == 0
    assert "torch" not in loaded
