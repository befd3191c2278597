"""`groundup build`: the order of the stages, and what each leaves in the run's folder.

A stage that is done is not done again, so a build that was stopped goes on where it was: all that a later stage
needs lies in the folder.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from groundup.accounting.hardware import describe_machine
from groundup.accounting.plan import describe
from groundup.build.decide import Decision, decide, decision_from_json
from groundup.build.folder import REMEDY, RunFolder
from groundup.build.say import say
from groundup.build.settings import BuildSettings
from groundup.build.stages import Stages
from groundup.build.text import Text, read_text
from groundup.config import from_dict, to_dict
from groundup.device import default_device, deterministic, environment, require_device
from groundup.files import fresh_path, is_full, sha256


def build(
    files: Sequence[str] = (),
    settings: BuildSettings | None = None,
    *,
    out: str | None = None,
    device: str | None = None,
    dry_run: bool = False,
    started: float | None = None,
) -> dict[str, Any]:
    """Build a model from `files` (none: the bundled text) within `settings.budget_seconds`; returns the results.

    `started` is the reading of `time.monotonic` from which the budget counts. With `dry_run` nothing is written
    and the plan is returned. Raises ValueError or OSError, before a folder is made, for text or settings that
    no model can be built from.
    """
    started = time.monotonic() if started is None else started
    settings = settings or BuildSettings()
    if out is not None:
        RunFolder.check_free(Path(out))
    deterministic(settings.deterministic)
    target = require_device(device) if device else default_device()
    say("reading text")
    text = read_text(files, settings)
    say("measuring this machine, and timing a training step")
    decision = decide(text.facts, settings, target, time.monotonic() - started)
    announce(text, decision)
    if dry_run:
        return {"plan": decision.as_json(), "notes": text.notes}
    name = (Path(files[0]).resolve().name.split(".")[0] or "run") if files else "state-of-the-union"
    folder = RunFolder.create(Path(out) if out else fresh_path(name), started)
    say(f"run folder {folder.path}")
    folder.write("env.json", environment())
    folder.write("plan.json", {**decision.as_json(), "data": text.manifest, "notes": text.notes + decision.notes})
    # From here on the run can be gone on with: config.json is what --resume asks for.
    folder.write("config.json", {"groundup": {"build": to_dict(settings), "data": text.manifest}})
    return _finish(folder, lambda: _begin(folder, settings, decision, text))


def _begin(folder: RunFolder, settings: BuildSettings, decision: Decision, text: Text) -> Stages:
    folder.record("plan", folder.elapsed)
    return Stages(folder, settings, decision, text)


def resume(run: str | Path, *, device: str | None = None, started: float | None = None) -> dict[str, Any]:
    """Go on with an interrupted build. A finished one is left as it is, and its results are returned.

    Raises ValueError when the folder is no run, another process works in it, or its inputs have changed.
    """
    folder = RunFolder.open(Path(run), time.monotonic() if started is None else started)
    if folder.done("report"):
        say(f"{run} is finished; nothing to do")
        return _conclude_again(folder)
    return _finish(folder, lambda: _go_on(folder, require_device(device) if device else None))


def _conclude_again(folder: RunFolder) -> dict[str, Any]:
    """The result of a finished run, which may have been moved since."""
    try:
        result = {**folder.read("result.json"), "run": str(folder.path)}
        conclude(result)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder.path / 'result.json'}: damaged ({error!r}); {REMEDY}") from error
    finally:
        folder.release()
    return result


def _go_on(folder: RunFolder, device: torch.device | None) -> Stages:
    try:
        stages = _stages_of(folder, device)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder.path}: its config.json or plan.json is damaged or of another version of groundup "
            f"({type(error).__name__}: {error}); begin a new run"
        ) from error
    done = ", ".join(stage["name"] for stage in folder.stages)
    say(f"going on with {folder.path} after {folder.elapsed:.0f} s of work: {done} done")
    return stages


def _stages_of(folder: RunFolder, device: torch.device | None) -> Stages:
    """What a run's folder says of settings, plan and text. KeyError and TypeError where that is not whole."""
    stored = folder.read("config.json")["groundup"]
    settings = from_dict(BuildSettings, stored["build"], "config.json: groundup.build")
    decision = decision_from_json(folder.read("plan.json"), device)
    require_device(decision.machine.device)
    deterministic(settings.deterministic)
    text = None
    if not folder.done("tokenizer"):
        _check_inputs(stored["data"])
        text = read_text([] if stored["data"]["bundled"] else stored["data"]["inputs"], settings)
        for name in ("files", "train_bytes", "held_out_bytes"):
            if text.manifest[name] != stored["data"][name]:
                raise ValueError(
                    f"the text changed since {folder.path} began: {name} {text.manifest[name]:,}, "
                    f"then {stored['data'][name]:,}; put it back, or begin a new run (another version of groundup "
                    "may part the text differently)"
                )
    return Stages(folder, settings, decision, text)


def _finish(folder: RunFolder, begin: Callable[[], Stages]) -> dict[str, Any]:
    """Run what is not done yet. Ctrl-C leaves a folder that `--resume` goes on with.

    Raises ValueError for a folder whose files are damaged inside.
    """
    try:
        result = begin().run()
    except KeyboardInterrupt:
        result = {"stopped_by": "interrupt", "run": str(folder.path)}
    except OSError as error:
        if is_full(error):
            say(f"what is done is kept; once there is space: groundup build --resume {folder.path}")
        raise
    except MemoryError:
        say(f"what is done is kept; once there is memory: groundup build --resume {folder.path}")
        raise
    except KeyError as error:
        if not folder.resumed:
            raise
        raise ValueError(
            f"{folder.path}: a file of this run lacks {error}, so it is damaged or of another version of groundup; "
            "begin a new run"
        ) from error
    finally:
        folder.save_clock()
        folder.release()
    if result.get("stopped_by") == "interrupt":
        say(f"stopped; go on with: groundup build --resume {folder.path}")
    else:
        conclude(result)
    return result


def conclude(result: dict[str, Any]) -> None:
    """Say what came out, and what can be done with it."""
    others = ", ".join(f"{name} {bits:.3f}" for name, bits in result["baselines"].items())
    say(f"done       {result['bits_per_byte']:.3f} bits per byte in {result['seconds']:.0f} s ({others})")
    say(f"report     {Path(result['run']) / 'report.html'}")
    say(f"try        groundup chat {result['run']}")


def _check_inputs(manifest: dict[str, Any]) -> None:
    for name, digest in manifest["hashes"].items():
        if not Path(name).exists() or sha256(name) != digest:
            raise ValueError(f"{name}: it changed since this run began; put it back, or begin a new run")


def announce(text: Text, decision: Decision) -> None:
    """Print the machine, the plan, and everything that was decided on the user's behalf."""
    say(describe_machine(decision.machine))
    for line in describe(decision.plan, text.facts, decision.runners_up):
        say(line)
    for note in text.notes + decision.notes:
        say(f"note       {note}")
