"""KenLM's estimator on one core. Started by `groundup bench`; needs the standard library and lmplz."""

import os
import resource
import subprocess


def prepare(options):
    folder = options["folder"]
    core = max(os.sched_getaffinity(0))
    command = [
        options["lmplz"], "-o", str(options["order"]), "-S", "4G", "-T", folder, "--discount_fallback",
        "--text", f"{folder}/training.txt", "--arpa", os.devnull,
    ]  # fmt: skip

    def run(units):
        for _ in range(units):
            subprocess.run(
                command,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )
        return {"peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024}

    return {"command": command}, run
