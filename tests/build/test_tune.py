"""Chat tuning: the documents come back out of the shards, and a text without passages makes no chat model."""

import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from groundup import data
from groundup.build.tune import documents_of, tune_for_chat
from groundup.model import Transformer
from groundup.model.identity_start import start_as_identity
from groundup.tokenizer import Tokenizer
from groundup.train import objectives
from tests.build.conftest import story
from tests.build.test_pretrain import PLAN

SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]


def test_documents_come_back_from_the_shards(tmp_path):
    documents = [story(i) for i in range(5)]
    tokenizer = Tokenizer.train_from_iterator(documents, 300, SPECIAL)
    data.write_shards(documents, tokenizer, tmp_path / "shards")
    assert documents_of(tmp_path / "shards", tokenizer, 10**9) == documents
    first = documents_of(tmp_path / "shards", tokenizer, 20)
    assert documents[0].startswith(first[0])


def test_ctrl_c_leaves_no_half_tuned_model(monkeypatch):
    documents = [story(i) for i in range(8)]
    tokenizer = Tokenizer.train_from_iterator(documents, 300, SPECIAL)
    model = Transformer(replace(PLAN.model, context_length=256))

    def strike(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return objectives.next_token(*arguments)

    monkeypatch.setattr("groundup.build.tune.objectives", SimpleNamespace(next_token=strike))
    made = replace(PLAN, model=model.config)
    with pytest.raises(KeyboardInterrupt):
        tune_for_chat(model, tokenizer, documents, made, seed=0, deadline=time.monotonic() + 60)


def test_tuning_lowers_the_loss_on_answers():
    documents = [story(i) for i in range(8)]
    tokenizer = Tokenizer.train_from_iterator(documents, 300, SPECIAL)
    model = Transformer(PLAN.model)
    start_as_identity(model, 0)
    run = tune_for_chat(model, tokenizer, [], PLAN, seed=0, deadline=time.monotonic() + 60)
    assert run is None
    roomy = type(PLAN)(**{**vars(PLAN), "model": type(PLAN.model)(**{**vars(PLAN.model), "context_length": 256})})
    model = Transformer(roomy.model)
    start_as_identity(model, 0)
    run = tune_for_chat(model, tokenizer, documents, roomy, seed=0, deadline=time.monotonic() + 60)
    assert run is not None
    assert run.losses[-1] < run.losses[0]
