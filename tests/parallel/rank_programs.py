"""What ranks run in `test_launch`: python rank_programs.py NAME FOLDER [TIMEOUT]."""

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from groundup.parallel import Place, joined


def sums(place: Place, folder: Path) -> None:
    total = torch.tensor([place.rank + 1.0])
    dist.all_reduce(total)
    (folder / f"sum-{place.rank}").write_text(str(total.item()))
    (folder / f"heard-{place.rank}").write_text("\n".join(addresses(os.getpid()) + addresses(os.getppid())))


def addresses(pid: int) -> list[str]:
    """What the process listens to, as Linux writes it: an address in hexadecimal and a port."""
    if not Path("/proc/net/tcp").exists():
        return []
    own = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return [line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in own]


def one_raises(place: Place, folder: Path) -> None:
    (folder / f"pid-{place.rank}").write_text(str(os.getpid()))
    if place.rank == 1:
        raise RuntimeError("the shoe is on the wrong foot")
    dist.all_reduce(torch.zeros(1))


def one_does_not_come(place: Place, folder: Path) -> None:
    dist.barrier()
    if place.rank == 1:
        evaluating()
    dist.all_reduce(torch.zeros(1))


def evaluating() -> None:
    time.sleep(60)


def one_is_stopped(place: Place, folder: Path) -> None:
    dist.barrier()
    if place.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.zeros(1))


def another_way(place: Place, folder: Path) -> None:
    """Rank 1 waits for a message that nobody sends."""
    if place.rank == 0:
        dist.all_reduce(torch.zeros(1))
    else:
        dist.recv(torch.zeros(1), 0)


def one_dies_at_first(place: Place, folder: Path) -> None:
    dist.barrier()
    if place.rank == 1 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    sums(place, folder)


def waits_for_a_signal(place: Place, folder: Path) -> None:
    def end(number: int, _: object) -> None:
        (folder / f"signal-{place.rank}").write_text(str(number))
        os._exit(130)

    signal.signal(signal.SIGTERM, end)
    dist.barrier()
    (folder / f"pid-{place.rank}").write_text(str(os.getpid()))
    time.sleep(60)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined(timeout=float((sys.argv[3:] or ["30"])[0])) as where:
        globals()[sys.argv[1]](where, Path(sys.argv[2]))
