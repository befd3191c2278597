"""A rank that takes longer than the others is named in the run's events."""

import json
import time

from groundup.optim import AdamW
from groundup.train import next_token, train
from tests.distributed import run_ranks
from tests.train.small import batch, tiny_model


def one_sleeps(rank, size, folder):
    def objective(model, rows):
        time.sleep(0.05 * (rank == 1))
        return next_token(model, rows)

    model = tiny_model()
    mine = [{key: value.tensor_split(size)[rank] for key, value in batch(i).items()} for i in range(30)]
    return train(model, mine, objective, AdamW(model, lr=1e-2), 25, run_dir=folder, progress=False).step


def test_a_slow_rank_is_named_after_twenty_updates(tmp_path):
    assert run_ranks(one_sleeps, 2, str(tmp_path)) == [25, 25]
    (event,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert (event["step"], event["event"]) == (20, "slow rank")
    assert (
        event["text"].startswith("rank 1 on ") and "times the median of all ranks, 2 windows in a row" in event["text"]
    )
