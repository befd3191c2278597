"""Entry 031: what do 8 and 4 bits a weight cost a real model?

    python experiments/031_quantize.py MODEL [--documents 3] [--characters 3000]

Bits per byte on the beginnings of bundled State of the Union addresses, and the bytes of the weights, in float32 and
quantised by groups of 32 and 128. Prints a table and ends with a JSON line.
"""

import argparse
import copy
import json
from pathlib import Path

from groundup import bundled
from groundup.compression.quantize import Quantization, quantize_model, weight_bytes
from groundup.corpus.reading import read_documents
from groundup.device import environment
from groundup.evaluation.perplexity import bits_per_byte
from groundup.model.source import read_source

SETTINGS = (
    None, Quantization("int8", 32), Quantization("int8", 128), Quantization("int4", 32), Quantization("int4", 128)
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--documents", type=int, default=3)
    parser.add_argument("--characters", type=int, default=3_000)
    options = parser.parse_args()
    source = read_source(options.model)
    assert source.tokenizer is not None, "MODEL needs a tokenizer"
    texts = [d.text[: options.characters] for d in read_documents(bundled.path())][:: -(-233 // options.documents)]
    rows = []
    print("bits  group  MB of weights  bits per byte  perplexity of a token")
    for settings in SETTINGS:
        model = copy.deepcopy(source.model)
        if settings is not None:
            quantize_model(model, settings)
        score = bits_per_byte(model, source.tokenizer, texts)
        bits, group = (32, 0) if settings is None else (int(settings.format[-1]), settings.group)
        megabytes = weight_bytes(model) / 1e6
        rows.append({"bits": bits, "group": group, "megabytes": megabytes, "bits_per_byte": score.bits_per_byte})
        print(f"{bits:4d}  {group:5d}  {megabytes:13.1f}  {score.bits_per_byte:13.4f}  {score.token_perplexity:21.3f}")
    result = {"experiment": "031_quantize", "model": options.model.name, "texts": len(texts), "rows": rows}
    print(json.dumps(result | {"environment": environment()}))


if __name__ == "__main__":
    main()
