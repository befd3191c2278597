"""From a .cu file to functions that Python can call: nvcc, a shared library, ctypes.

The library speaks C: addresses, sizes and a stream. So it needs neither torch's headers, which take most of a minute to
compile, nor a torch with CUDA to be built against, and a machine without a GPU can still check that it compiles.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from groundup.environ import cache_directory, env

FLAGS = ("-O3", "-std=c++17", "--shared", "--compiler-options=-fPIC")
USUAL_PLACES = ("/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc")


def find_nvcc() -> str | None:
    """The CUDA compiler: of `CUDA_HOME`, of the PATH, or where it is installed by default. None if there is none."""
    home = env("CUDA_HOME")
    found = shutil.which(str(Path(home, "bin", "nvcc"))) if home else shutil.which("nvcc")
    return found or next((place for place in USUAL_PLACES if not home and shutil.which(place)), None)


def compile_library(source: Path, target: Path, architecture: int, *flags: str) -> str:
    """Compile for one architecture, such as 90. Returns what nvcc said; OSError with its reason if it failed."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise OSError(
            f"{source.name} needs nvcc, the CUDA compiler, to be built, and none was found in CUDA_HOME, on the PATH "
            "or in /usr/local/cuda; install the CUDA toolkit, or leave out backend('cuda')"
        )
    code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    command = [nvcc, *FLAGS, *flags, code, "-o", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"nvcc could not build {source.name} for sm_{architecture}:\n{done.stdout}{done.stderr}"[-3000:])
    return done.stdout + done.stderr


@cache
def library(name: str, architecture: int) -> ctypes.CDLL:
    """The library built from `name`.cu beside this file, from the user's cache where the same source was built before.

    Renamed into place when it is whole, so that processes which build it at the same time do no harm.
    """
    source = Path(__file__).with_name(f"{name}.cu")
    key = hashlib.sha256(source.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    target = cache_directory() / "cuda" / f"{name}-{key}-sm_{architecture}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder, target.name)
            compile_library(source, built, architecture)
            os.replace(built, target)
    return ctypes.CDLL(str(target))
