"""The stages after the plan: each reads the folder, does one thing, and leaves its result there."""

import datetime
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from groundup import data, train
from groundup.accounting.params import count_parameters
from groundup.accounting.plan import with_bytes_per_token
from groundup.build import measure
from groundup.build.curve import Curve
from groundup.build.decide import Decision, left_bytes, worth_compiling
from groundup.build.folder import RunFolder
from groundup.build.pretrain import CURVE_POINTS, Session, prepare, pretrain
from groundup.build.say import say
from groundup.build.settings import BuildSettings
from groundup.build.text import Text, load_texts, save_texts
from groundup.build.tune import documents_of, tune_for_chat
from groundup.device import release_memory, reset_peak_memory, resident_bytes
from groundup.evaluation import bits_per_byte
from groundup.files import sha256
from groundup.inference import Engine
from groundup.model import Transformer
from groundup.model.pretrained import load_pretrained, save_pretrained
from groundup.report import write_report
from groundup.tokenizer import Tokenizer
from groundup.tokenizer.chat import CONTROL_TOKENS
from groundup.train import precision

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_BYTES = 20_000_000
LEAST_TRAINING_SHARE = 0.05
CURVE_BYTES, LEAST_PIECE = 40_000, 2_000
CHAT_TOKENS = 1_000_000


class Stages:
    """A build from its plan to its report; `run` does what the folder says is not done yet."""

    def __init__(self, folder: RunFolder, settings: BuildSettings, decision: Decision, text: Text | None) -> None:
        self.folder, self.settings, self.decision, self.text = folder, settings, decision, text
        self.held_out_file = folder.path / "data" / "held_out.jsonl"
        self.validation_file = folder.path / "data" / "validation.jsonl"
        self.shards = folder.path / "data" / "train"
        self.curve = Curve(folder.path)

    def run(self) -> dict[str, Any]:
        """All stages; returns the result, or why there is none yet."""
        reserve, preparing = self.decision.reserve, self.decision.prepare_seconds
        self._once("tokenizer", self.make_tokenizer, preparing / 2)
        self.tokenizer = Tokenizer.load(self.folder.path)
        self.held_out = load_texts(self.held_out_file)
        self.validation = pieces(load_texts(self.validation_file), CURVE_BYTES)
        self._once("baselines", self.make_baselines, preparing / 2)
        self._sharpen()
        self._once("pretrain", self.pretrain, self.decision.plan.train_seconds)
        if not self.folder.done("pretrain"):
            return {"stopped_by": "interrupt", "run": str(self.folder.path)}
        self.curve.clear()  # only now that the stage is known to be done
        self._once("evaluate", self.evaluate, reserve.evaluation)
        self._once("chat", self.tune, reserve.chat)
        self._once("samples", self.draw_samples, reserve.samples)
        self._once("report", self.report, reserve.report)
        return self.folder.read("result.json")

    def _once(self, name: str, stage: Any, predicted_seconds: float) -> None:
        if not self.folder.done(name):
            with self.folder.stage(name, predicted_seconds) as outcome:
                outcome.finished = stage() is not False

    # ---- before training ----

    def make_tokenizer(self) -> None:
        """Learn the vocabulary from (at most 20 MB of) the training text, and write the token shards."""
        assert self.text is not None, "only a build whose text is at hand begins here"
        say("learning the vocabulary")
        special = [END_OF_TEXT, *CONTROL_TOKENS]
        tokenizer = Tokenizer.train_from_iterator(
            _head(self.text.train, TOKENIZER_BYTES), self.decision.plan.model.vocab_size, special
        )
        save_texts(self.held_out_file, self.text.held_out)
        save_texts(self.validation_file, self.text.validation)
        say("encoding the text")
        data.write_shards(self.text.train, tokenizer, self.shards, overwrite=True)
        tokenizer.save(self.folder.path)
        self.text = None

    def make_baselines(self) -> None:
        say("measuring the baselines")
        self.folder.write("baselines.json", measure.baselines(self.shards, self.held_out, self.tokenizer))

    def _sharpen(self) -> None:
        """Put what was learnt since into the plan: the vocabulary that the text allowed, the bytes per token, and how
        hard the text is for an n-gram. The predictions of the report are those of this moment, before training."""
        made = self.decision.plan
        shards = data.ShardSet.open(self.shards, verify=False)
        if self.tokenizer.vocab_size < made.model.vocab_size:
            allowed = self.tokenizer.vocab_size
            say(f"note       the text allows a vocabulary of {allowed:,}, not {made.model.vocab_size:,}")
            model = replace(made.model, vocab_size=allowed)
            made = replace(made, model=model, parameters=count_parameters(model).total)
            self.decision.session = None
        ngram = self.folder.read("baselines.json")["kneser_ney_5"]["bits_per_byte"]
        self.decision.facts = replace(self.decision.facts, ngram_bits_per_byte=ngram)
        made = with_bytes_per_token(made, self.decision.facts, shards.text_bytes / shards.num_tokens)
        self.decision.plan = made
        if not (self.folder.path / "checkpoints").exists():
            self.folder.write("plan.json", {**self.folder.read("plan.json"), **self.decision.as_json()})
            say(
                f"expected   {made.bits_per_byte:.3f} bits per byte, {made.nats_per_token:.3f} nats per token, "
                "now that an n-gram was measured on this text"
            )

    # ---- training ----

    def pretrain(self) -> bool:
        """Train until the reserve begins, or the passes over the text are done; False when interrupted."""
        made, machine, settings = self.decision.plan, self.decision.machine, self.settings
        session = self.decision.session or prepare(made, machine, settings.weights_seed, worth_compiling(settings))
        deadline = self.folder.deadline(self.settings.budget_seconds - self.decision.reserve.total)
        self._check_time(deadline - time.monotonic())
        release_memory()
        self._expect(resident_bytes())
        reset_peak_memory(session.device)
        run = pretrain(
            session, made, machine, self.shards, self.folder.path, seed=settings.order_seed,
            dropout_seed=settings.drop_seed, deadline=deadline,
            max_steps=made.steps if self.decision.capped else None,
            hook=lambda step, model, run: self._score(session, run),
            hook_every=math.ceil(made.steps / CURVE_POINTS),
            saved=self.folder.save_clock, track=self.settings.track, z_loss=self.settings.z_loss,
        )  # fmt: skip
        if run.stopped_by == "interrupt":
            return False
        self._score(session, run)
        kept = self.curve.restore_best(session.model, noise(self.validation))
        if kept:
            say(
                f"note       the weights of step {kept['step']:,} are kept: later ones score worse on the validation "
                "text; more text, or fewer passes, would help"
            )
        request = {name: self.folder.read("config.json")["groundup"][name] for name in ("build", "data")}
        save_pretrained(session.model, self.folder.path, self.folder.path, extra_config=request)
        outcome = {"epochs": run.epochs, "stopped_by": run.stopped_by, "skipped": run.skipped}
        outcome |= {"kept_step": kept["step"] if kept else run.step, "weights_sha256": sha256(self.weights)}
        self.folder.write("training.json", {**run.measured(), **outcome})
        return True

    def _expect(self, idle_bytes: int) -> None:
        """Add to the predicted memory what the process has come to hold since the trial."""
        made = self.decision.plan
        peak = made.peak_bytes + left_bytes(self.decision, idle_bytes)
        if peak == made.peak_bytes or (self.folder.path / "checkpoints").exists():
            return
        self.decision.plan = replace(made, peak_bytes=peak)
        self.folder.write("plan.json", {**self.folder.read("plan.json"), **self.decision.as_json()})

    def _check_time(self, left: float) -> None:
        """ValueError where only an untrained model could come out: the time is used up, and no checkpoint is whole."""
        checkpoints = self.folder.path / "checkpoints"
        if left < LEAST_TRAINING_SHARE * self.decision.plan.train_seconds and not train.checkpoint.latest(checkpoints):
            raise ValueError(
                f"{self.folder.path}: {max(0.0, left):.0f} s of the budget are left to train in, and there is no whole "
                "checkpoint to go on from; begin a new run, with more time if this one had too little"
            )

    def _score(self, session: Session, run: train.Run) -> None:
        """Add a point to the curve of the training model on a little validation text."""
        if not self.validation or any(p["step"] == run.step for p in self.curve.points()[-1:]):
            return
        measured = session.score(self.tokenizer, self.validation)
        point = {"step": run.step, "tokens": run.tokens, "seconds": round(run.seconds, 2),
                 "bits_per_byte": measured.bits_per_byte, "nats_per_token": measured.nats_per_token}  # fmt: skip
        try:
            self.curve.add(point, session.model)
        except OSError as error:
            say(f"note       the curve lacks step {run.step} ({error}); training goes on")

    # ---- after training ----

    def evaluate(self) -> None:
        """Bits per byte of the saved weights on all held-out text."""
        say("measuring on held-out text")
        model = self._load()
        measured = bits_per_byte(model, self.tokenizer, self.held_out)
        self.folder.write("evaluation.json", asdict(measured))
        say(f"measured   {measured.bits_per_byte:.4f} bits per byte, {measured.nats_per_token:.3f} nats per token")

    def tune(self) -> None:
        """A copy of the model learns to chat, in its own folder; not when the settings say no."""
        if not self.settings.chat:
            return
        say("tuning a copy to chat")
        model = self._load()
        model.compute_dtype = precision.DTYPES[self.decision.machine.precision]
        documents = documents_of(self.shards, self.tokenizer, CHAT_TOKENS)
        reserve = self.decision.reserve
        after = reserve.samples + reserve.report + reserve.slack
        deadline = min(time.monotonic() + reserve.chat, self.folder.deadline(self.settings.budget_seconds - after))
        run = tune_for_chat(
            model, self.tokenizer, documents, self.decision.plan, seed=self.settings.seed, deadline=deadline
        )
        if run is None:
            say("note       the text has no passages to make conversations of: no chat model")
            return
        extra = {"chat": run.measured(), "tuned_from": "the model in the folder above"}
        save_pretrained(model, self.folder.path, self.folder.path / "chat", extra_config=extra)

    def draw_samples(self) -> None:
        """Continuations of the base model, and answers of the chat model."""
        say("drawing samples")
        seed = self.settings.seed
        base = measure.draw_samples(Engine(self._load(), self.tokenizer), self.held_out, seed)
        self.folder.write("samples/base.json", base)
        if (self.folder.path / "chat" / "config.json").exists():
            chat = Engine(load_pretrained(self.folder.path / "chat").to(self.device), self.tokenizer)
            self.folder.write("samples/chat.json", measure.draw_answers(chat, self.held_out, seed))

    def report(self) -> None:
        """result.json and report.html."""
        self.folder.write("result.json", self.result())
        write_report(self.folder.path)

    def result(self) -> dict[str, Any]:
        """Measured beside predicted, under the names that `--json` promises."""
        evaluation, training = self.folder.read("evaluation.json"), self.folder.read("training.json")
        baselines = {name: b["bits_per_byte"] for name, b in self.folder.read("baselines.json").items()}
        plan = self.folder.read("plan.json")
        seconds = round(self.folder.elapsed, 2)
        speed = training["tokens_per_second"]
        return {
            "bits_per_byte": evaluation["bits_per_byte"],
            "baselines": baselines,
            "parameters": self.decision.plan.parameters,
            "tokens": training["tokens"],
            "seconds": seconds,
            "predicted": plan["predicted"],
            "measured": {
                "total_seconds": seconds,
                "step_seconds": training["step_seconds"],
                "tokens_per_second": speed,
                "mfu": self.decision.mfu(speed) if speed else None,
                "peak_memory_bytes": training["peak_memory_bytes"],
                "bits_per_byte": evaluation["bits_per_byte"],
                "nats_per_token": evaluation["nats_per_token"],
                "bytes_per_token": evaluation["bytes"] / evaluation["tokens"],
            },
            "held_out": {k: evaluation[k] for k in ("tokens", "bytes", "documents", "policy")},
            "epochs": training["epochs"],
            "steps": training["steps"],
            "kept_step": training["kept_step"],
            "stopped_by": training["stopped_by"],
            "stages": self.folder.stages,
            "budget_seconds": self.settings.budget_seconds,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "run": str(self.folder.path),
        }

    @property
    def device(self) -> torch.device:
        return torch.device(self.decision.machine.device)

    @property
    def weights(self) -> Path:
        return self.folder.path / "model.safetensors"

    def _load(self) -> Transformer:
        """The trained model. ValueError when the file is not what training wrote."""
        if sha256(self.weights) != self.folder.read("training.json")["weights_sha256"]:
            raise ValueError(f"{self.weights}: changed or damaged since training; restore it, or begin a new run")
        return load_pretrained(self.folder.path).to(self.device)


def _head(texts: Sequence[str], most_bytes: int) -> list[str]:
    """The first texts up to a number of bytes (of characters, to be quick), at least a part of one."""
    kept, size = [], 0
    for text in texts:
        kept.append(text[: most_bytes - size])
        size += len(kept[-1])
        if size >= most_bytes:
            break
    return kept


def noise(texts: Sequence[str]) -> float:
    """The share by which scores of two steps on these texts may differ by chance: less, the more text there is.

    An estimate: per token such scores differ by about half a nat of three, and a token is about four bytes.
    """
    return 0.6 / math.sqrt(max(1, sum(map(len, texts))))


def pieces(texts: Sequence[str], most_bytes: int) -> list[str]:
    """Beginnings of as many texts as give a piece each that is worth scoring, together `most_bytes` at most."""
    each = max(LEAST_PIECE, most_bytes // max(1, len(texts)))
    return _head([text[:each] for text in texts], most_bytes)
