"""`groundup bench decode`: tokens per second of generating, beside llama.cpp, vLLM, Hugging Face and litgpt.

One model (by default of SmolLM2-135M's shape, with random weights: speed does not ask what they say), prompts of 128
tokens, 64 new ones, greedy. All programs take turns in one run, and so does a loop that only reads memory: one new
token reads every weight once, so bytes per step over its rate is the least time that a step can take
(`roofline_fraction`). With `--mode prefill` the prompt is measured, beside torch's bfloat16 matrix product.

Peers that compile do it in a run of their own, `--prepare`, which keeps what they make on disk; all programs read the
same weights, from a folder that stays.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from groundup import presets
from groundup.bench.race import Contest, Entry, Program, Setting
from groundup.bench.record import Record, checkout, load_average, print_table, save
from groundup.bench.worker import WorkerFailed
from groundup.device import physical_cores
from groundup.environ import cache_directory
from groundup.model import Transformer
from groundup.model.gguf import save_gguf
from groundup.model.pretrained import save_pretrained

OURS, ENGINE, CEILING = "groundup", "groundup engine", "ceiling"
COLUMNS = {
    "program": "program",
    "setting": "weights",
    "rate": "tokens/s",
    "spread": "IQR",
    "milliseconds": "ms per step",
    "gb": "GB/s",
    "roofline": "of roofline",
    "gflops": "GFLOP/s",
    "note": "",
}
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": dict(
        vocab_size=49_152, d_model=576, num_layers=30, num_heads=9, num_kv_heads=3, d_ff=1536, context_length=2048,
        rope_theta=100_000.0, tie_embeddings=True,
    ),
    "S": dict(vocab_size=8192, d_model=320, num_layers=6, num_heads=5, d_ff=864, context_length=1024),
    "M": dict(vocab_size=8192, d_model=512, num_layers=8, num_heads=8, d_ff=1376, context_length=1024),
}  # fmt: skip
BITS = {"bf16": 16, "int8": 8, "q8_0": 8, "int4": 4}


@dataclass(frozen=True)
class Mode:
    """What a unit of work is: a step of so many sequences, or a prompt of one."""

    name: str
    batch: int = 1

    @property
    def is_prefill(self) -> bool:
        return self.name == "prefill"


MODES = {mode.name: mode for mode in (Mode("batch-1", 1), Mode("batch-8", 8), Mode("batch-32", 32), Mode("prefill"))}


def settings(mode: Mode) -> list[Setting]:
    """Everything that is tried, each peer in the settings that are fastest on a CPU."""
    ours = ("bf16",) if mode.is_prefill else ("bf16", "int8", "int4")
    plain = {"weights": "bf16"}
    return [
        *(Setting(OURS, kind, {"weights": kind}) for kind in ours),
        *(Setting(ENGINE, kind, {"weights": kind}) for kind in ours if not mode.is_prefill),
        *(Setting("llama.cpp", kind, {"weights": kind, "flash_attention": 1}) for kind in ("bf16", "q8_0")),
        Setting("vLLM", "bf16", plain | {"compile": True}),
        Setting("Hugging Face", "bf16", plain),
        Setting("litgpt", "bf16", plain | {"compile": False}),
        Setting(CEILING, "bf16 products" if mode.is_prefill else "reading", {}),
    ]


def programs() -> dict[str, Program]:
    here, root = Path(__file__), checkout()
    peers = root / "benchmarks" / "peers" if root else None
    return {
        OURS: Program(here.with_name("decode_ours.py"), "groundup"),
        ENGINE: Program(here.with_name("decode_engine.py"), "groundup"),
        "llama.cpp": Program(peers and peers / "decode_llamacpp.py", "llama_cpp"),
        "vLLM": Program(peers and peers / "decode_vllm.py", "vllm", ("lib/libiomp5.so",)),
        "Hugging Face": Program(peers and peers / "decode_huggingface.py", "transformers"),
        "litgpt": Program(peers and peers / "decode_litgpt.py", "litgpt"),
        CEILING: Program(here.with_name("decode_ceiling.py"), "groundup"),
    }


def model_folder(name: str) -> Path:
    """Where the model of a shape is kept: peers find what they compiled by its place."""
    digest = hashlib.sha256(json.dumps(SHAPES[name], sort_keys=True).encode()).hexdigest()[:12]
    return cache_directory() / "bench" / f"decode-{name}-{digest}"


def write_model(shape: dict[str, Any], folder: Path) -> Transformer:
    """The files that programs read, if they are not there: Hugging Face's folder, and GGUF in both formats."""
    torch.manual_seed(0)
    model = Transformer(presets.llama(**shape)).eval()
    done = folder / "done"
    if not done.exists():
        save_pretrained(model, None, folder, dtype=torch.bfloat16)
        for kind in ("bf16", "q8_0"):
            save_gguf(model, folder / f"{kind}.gguf", dtype=kind)
        done.touch()
    return model


def products_per_token(model: Transformer, head: bool) -> int:
    """Weights that a token is multiplied with; the head's only where its logits are wanted."""
    inner = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    return inner + (model.head_weight.numel() if head else 0)


def table(entries: Sequence[Entry], mode: Mode, prompt: int, weights: int) -> list[dict[str, Any]]:
    """One row per setting; `weights` are multiplied per token."""
    roof = next((e.rates.median for e in entries if e.setting.program == CEILING and e.rates), None)
    tokens = prompt if mode.is_prefill else mode.batch
    rows = []
    for entry in entries:
        row: dict[str, Any] = {"program": entry.setting.program, "setting": entry.setting.name}
        row["note"] = entry.failure or ""
        rows.append(row)
        if entry.rates is None:
            continue
        rate, spread = entry.rates.median, entry.rates.spread
        if entry.setting.program == CEILING:
            key = "gflops" if mode.is_prefill else "gb"
            row |= {key: rate * (10 if mode.is_prefill else 1), "note": f"IQR {spread / rate:.1%}"}
            continue
        row |= {"rate": rate * tokens, "spread": spread * tokens, "milliseconds": 1e3 / rate}
        row["gflops"] = 2 * weights * rate * tokens / 1e9
        if mode.is_prefill:
            row["roofline"] = row["gflops"] / (10 * roof) if roof else None
        elif "bytes_per_step" in entry.facts:
            row["gb"] = entry.facts["bytes_per_step"] * rate / 1e9
            row["roofline"] = row["gb"] / roof if roof else None
    return rows


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[float, str]]:
    """Of our step and our engine in each format to the fastest peer with as many bits per weight, and who that is."""
    found = {}
    for ours in (row for row in rows if row["program"] in (OURS, ENGINE) and "rate" in row):
        peers = [
            row for row in rows
            if row["program"] not in (OURS, ENGINE, CEILING) and "rate" in row
            and BITS[row["setting"]] == BITS[ours["setting"]]
        ]  # fmt: skip
        if peers:
            best = max(peers, key=lambda row: row["rate"])
            title = ours["setting"] if ours["program"] == OURS else f"engine {ours['setting']}"
            found[title] = (ours["rate"] / best["rate"], f"{best['program']} ({best['setting']})")
    return found


def compare(mode: Mode, entries: Sequence[Entry], rows: list[dict[str, Any]], details: dict[str, Any]) -> Record:
    """The record of one mode. `ratio` is the smallest of those in `details`: of the step and the engine, per format."""
    compared = ratios(rows)
    worst = min(compared, key=lambda title: compared[title][0], default=None)
    *engine, kind = (worst or "bf16").split()
    ours = next(row for row in rows if row["program"] == (ENGINE if engine else OURS) and row["setting"] == kind)
    facts = next(e.facts for e in entries if e.setting.title == f"{OURS} ({kind})")
    return Record(
        name=f"decode {mode.name}",
        ours=ours["rate"],
        peer=ours["rate"] / compared[worst][0] if worst else None,
        peer_name=compared[worst][1] if worst else None,
        ratio=compared[worst][0] if worst else None,
        unit="tokens/s",
        device=facts["environment"]["device"],
        rows=rows,
        details={
            "ratios": {kind: {"ratio": ratio, "peer": peer} for kind, (ratio, peer) in compared.items()},
            "roofline_fraction": {
                row["setting"]: row["roofline"] for row in rows if row["program"] == OURS and row.get("roofline")
            },
            "measured": {e.setting.title: list(e.rates.values) for e in entries if e.rates},
            "threads": {e.setting.title: e.facts["threads"] for e in entries if e.facts},
            **details,
        },
        versions={k: v for e in entries for k, v in e.facts.get("versions", {}).items()},
        environment=facts["environment"],
    )


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="groundup bench decode", description=main.__doc__)
    parser.add_argument("--mode", choices=[*MODES, "all"], default="all")
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2-135m")
    parser.add_argument("--programs", help="comma-separated: only these peers", default=None)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each mode's race (default 20)")
    parser.add_argument("--turn-seconds", type=float, default=1.0, help="length of one program's turn (default 1)")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--prompt", type=int, default=128, help="tokens before the new ones (default 128)")
    parser.add_argument("--new", type=int, default=64, help="new tokens, whose steps are measured (default 64)")
    parser.add_argument("--prepare", action="store_true", help="let every program compile what it keeps, and stop")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/decode-SHAPE-MODE.json")
    return parser.parse_args(argv)


def _given(mode: Mode, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What every program of a mode is told."""
    return {
        "shape": SHAPES[options.shape], "folder": str(folder), "mode": "prefill" if mode.is_prefill else "decode",
        "batch": mode.batch, "prompt": options.prompt, "new": options.new, "threads": options.threads,
        "ceiling": "products" if mode.is_prefill else "memory",
    }  # fmt: skip


def _tried(mode: Mode, options: argparse.Namespace) -> list[Setting]:
    wanted = options.programs.split(",") if options.programs else list(programs())
    return [s for s in settings(mode) if s.program in (*wanted, OURS, ENGINE, CEILING)]


def _prepare(mode: Mode, options: argparse.Namespace, folder: Path) -> None:
    """Each program does one step by itself, with all the time that it takes to compile."""
    for setting in _tried(mode, options):
        program, started = programs()[setting.program], time.perf_counter()
        outcome = program.absence
        if outcome is None:
            try:
                with program.start(_given(mode, options, folder) | setting.options, timeout=3600.0) as worker:
                    worker.run(1)
                outcome = f"ready after {time.perf_counter() - started:.0f} s"
            except WorkerFailed as failure:
                outcome = str(failure)
        print(f"{mode.name}, {setting.title}: {outcome}", flush=True)


def _run(mode: Mode, options: argparse.Namespace, folder: Path, model: Transformer) -> Record | None:
    load_before = load_average()
    contest = Contest(programs(), _given(mode, options, folder), options.turn_seconds)
    entries = contest.race(_tried(mode, options), options.seconds)
    rows = table(entries, mode, options.prompt, products_per_token(model, head=not mode.is_prefill))
    print_table(f"decode {options.shape}, {mode.name}, {options.threads} threads", rows, COLUMNS)
    if not any(row["program"] == OURS and "rate" in row for row in rows):
        return None
    details = {"shape": SHAPES[options.shape], "prompt": options.prompt, "new": options.new}
    record = compare(mode, entries, rows, details)
    record.load_average = {"before": load_before, "after": load_average()}
    return record


def main(argv: Sequence[str] = ()) -> int:
    """Tokens per second of generating with one to 32 sequences, and of reading a prompt, beside other engines."""
    options = _arguments(argv)
    modes = list(MODES.values()) if options.mode == "all" else [MODES[options.mode]]
    folder = model_folder(options.shape)
    model = write_model(SHAPES[options.shape], folder)
    if options.prepare:
        for mode in modes:
            _prepare(mode, options, folder)
        return 0
    for mode in modes:
        record = _run(mode, options, folder, model)
        if record is None:
            print(f"groundup bench decode: groundup did not run {mode.name}", file=sys.stderr)
            return 1
        if options.save:
            print(f"saved {save(record, f'decode-{options.shape}-{mode.name}')}")
        print(record.line(), flush=True)
    return 0
