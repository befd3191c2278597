"""Training by several threads, in bounded memory, with kills: the merges of the readable path."""

import os
import random
import subprocess
import sys
import threading
from collections import Counter

import pytest

from groundup.tokenizer import bpe
from groundup.tokenizer.counting import PretokenCounter, read_text

pytest.importorskip("llvmlite")

from groundup.tokenizer import count_state, training, word_count
from groundup.tokenizer.fast.front import SCANNERS
from groundup.tokenizer.fast.merges import words_of
from tests.thorough import times
from tests.tokenizer.awkward import FRAGMENTS

END = "<|endoftext|>"


@pytest.fixture
def small_steps(monkeypatch):
    """Ranges of a kilobyte, and each delivered and saved at once."""
    monkeypatch.setattr(training, "STEP", 1000)
    monkeypatch.setattr(word_count, "STEP", 1000)
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(training, "_SAVING_SHARE", 1e9)


def documents(seed, number=40):
    source = random.Random(seed)
    words = ["the", "hat", "isn't", "1999", "Brücke", "你好，", "\n\n", "\0", "x" * 30, *FRAGMENTS]
    return [" ".join(source.choices(words, k=source.randint(1, 120))).replace(END, "") for _ in range(number)]


def write(path, texts):
    path.write_bytes(END.join(texts).encode())
    return path


def count_readably(paths, special_tokens=(END,), pattern="gpt2"):
    counter = PretokenCounter(pattern, special_tokens)
    for path in paths:
        counter.add(read_text(path))
    return counter.counts()


def count_files(paths, special_tokens=(END,), pattern="gpt2", **options):
    return dict(training.count_files(paths, special_tokens, pattern, **options).items())


@pytest.mark.parametrize("pattern", [*SCANNERS, "none", r"\w+|[^\w]"])
def test_files_have_the_counts_of_the_readable_path(pattern, tmp_path, small_steps):
    paths = [write(tmp_path / str(seed), documents(seed)) for seed in range(3)]
    expected = count_readably(paths, (END, "<|end|>"), pattern)
    assert count_files(paths, (END, "<|end|>"), pattern, workers=2) == expected


@pytest.mark.parametrize("pattern", ["gpt2", "none"])
def test_texts_have_the_counts_of_the_readable_path(pattern, small_steps):
    texts = [*documents(1), "", f"a{END}b", "lone \ud800 surrogate"]
    counter = PretokenCounter(pattern, [END])
    for text in texts:
        counter.add([text])
    assert dict(training.count_texts(texts, [END], pattern, workers=3).items()) == counter.counts()


def test_workers_and_the_order_of_documents_make_no_difference(tmp_path, small_steps):
    texts = documents(2)
    expected = bpe.learn_merges(count_readably([write(tmp_path / "text", texts)]), 300)
    for workers in (1, 2, 3, 8):
        random.Random(workers).shuffle(texts)
        half = len(texts) // 2
        paths = [write(tmp_path / "one", texts[:half]), write(tmp_path / "two", texts[half:])]
        assert training.train(paths, 300 + 257, [END], workers=workers) == expected


def test_words_go_to_common_tables_when_there_is_little_memory(tmp_path, monkeypatch, small_steps):
    path = write(tmp_path / "text", documents(3))
    monkeypatch.setattr(word_count, "TABLE_BYTES", 1)
    assert count_files([path], workers=3) == count_readably([path])


def test_invalid_bytes_are_read_as_replacement_characters_and_counted(tmp_path, small_steps, caplog):
    path = tmp_path / "text"
    data = bytearray("Eine Brücke, \ufffd 你好。 ".encode() * 900)
    for place in random.Random(4).sample(range(len(data)), 300):
        data[place] = 0xE2
    path.write_bytes(data)
    expected = count_readably([path])
    warning = caplog.messages[-1]
    assert "invalid UTF-8 sequences were read as U+FFFD" in warning
    caplog.clear()
    assert count_files([path], workers=2) == expected
    assert caplog.messages[-1] == warning


def test_a_binary_file(tmp_path, small_steps):
    path = tmp_path / "binary"
    path.write_bytes(random.Random(17).randbytes(40_000) + b"\xe4\xbd" * 3000 + bytes(5000))
    for pattern in ("gpt2", "o200k", "none"):
        assert count_files([path], pattern=pattern, workers=2) == count_readably([path], pattern=pattern)


def test_a_pipe_is_read_in_order(tmp_path):
    path, pipe = write(tmp_path / "text", documents(5)), tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()))
    writer.start()
    assert count_files([pipe]) == count_readably([path])
    writer.join()
    with pytest.raises(ValueError, match="not a regular file"):
        count_files([pipe], state=tmp_path)


@pytest.mark.parametrize("data", [b"", b"a", b"\0", b"\xff", b" ", END.encode(), END.encode() * 3, bytes(range(256))])
def test_files_with_next_to_nothing_in_them(data, tmp_path):
    path = tmp_path / "text"
    path.write_bytes(data)
    assert count_files([path]) == count_readably([path])
    assert training.train([path], 1000, [END]) == bpe.learn_merges(count_readably([path]), 743)


def test_no_files_and_no_texts():
    assert training.train([], 1000) == []
    assert len(training.count_texts([])) == 0


def test_progress_covers_all_bytes_and_all_merges(tmp_path, small_steps):
    path = write(tmp_path / "text", documents(6))
    told = []
    training.train([path], 400, [END], progress=lambda *what: told.append(what), workers=2)
    reading = [done for stage, done, total in told if stage == "reading"]
    assert reading == sorted(reading) and reading[-1] == path.stat().st_size and len(reading) > 10


def test_an_error_in_a_worker_is_raised(tmp_path, small_steps, monkeypatch):
    path = write(tmp_path / "text", documents(7))
    with pytest.raises(OSError, match="missing"):
        training.count_files([path, tmp_path / "missing"])
    monkeypatch.setattr(word_count.FileRange, "size", property(lambda self: 10**6))
    with pytest.raises(OSError, match="became shorter"):
        training.count_files([path])
    with pytest.raises(ValueError, match="workers: 0"):
        training.count_files([path], workers=0)
    with pytest.raises(IsADirectoryError):
        training.count_files([tmp_path])


def test_an_interrupt_stops_the_counting(tmp_path, small_steps):
    def stop(stage, done, total):
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        training.count_files([write(tmp_path / "text", documents(8))], progress=stop, workers=2)
    assert set(threading.enumerate()) <= before


def test_more_words_than_memory_is_an_error_that_says_so(tmp_path):
    source = random.Random(9)
    path = tmp_path / "text"
    path.write_text(" ".join("".join(source.choices("abcdefgh", k=10)) for _ in range(200_000)))
    with pytest.raises(ValueError, match="different words so far, and no room for more"):
        training.count_files([path], workers=1, memory=20_000_000)
    with pytest.raises(ValueError, match="memory: 9,000,000 bytes; 2 workers need 1"):
        training.count_files([path], workers=2, memory=9_000_000)
    assert word_count.default_workers(20_000_000) == 1  # no more than fit
    words = training.count_files([path])
    with pytest.raises(
        ValueError, match=r"learning from 200,\d+ different words|learning from 199,\d+ different words"
    ):
        training.learn(words, 1000, memory=words.text.nbytes * 10)


def test_a_text_without_a_place_to_cut_must_fit_into_memory(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"a" * 5_000_000)
    with pytest.raises(ValueError, match="5,000,000 bytes of text without a place to cut, of 16,000,000 allowed"):
        training.count_files([path], workers=1, memory=16_000_000)
    assert count_files([path], workers=1) == {b"a" * 5_000_000: 1}


def test_without_numba_the_result_is_the_same(tmp_path, small_steps, monkeypatch, caplog):
    path = write(tmp_path / "text", documents(16))
    expected = training.train([path], 400, [END])

    def missing(*names):
        raise ImportError("No module named 'numba'")

    monkeypatch.setattr("groundup.tokenizer.word_count.prepare", missing)
    monkeypatch.setattr("groundup.tokenizer.fast.merges.entry", missing)
    assert training.train([path], 400, [END], state=tmp_path / "state", workers=3) == expected
    assert [message for message in caplog.messages if "numba" in message] == [
        "numba cannot be imported (No module named 'numba'): words are counted in plain Python, slowly",
        "numba cannot be imported (No module named 'numba'): merges are learned in plain Python, slowly",
    ]
    path.write_bytes(b"invalid \xff bytes, " * 1000)
    assert count_files([path]) == count_readably([path])
    monkeypatch.setattr("groundup.tokenizer.plain_tables._BYTES_PER_WORD", 10**9)
    with pytest.raises(ValueError, match="different words so far"):
        count_files([path], memory=100_000_000)


def test_the_estimate_grows_with_files_workers_and_vocabulary(tmp_path):
    path = write(tmp_path / "text", documents(10))
    one = training.estimate([path], 1000, 1)
    assert one["total"] == max(one["blocks"] + one["tables"] + one["words"], one["learning"])
    for more in (training.estimate([path, path], 1000, 1), training.estimate([path], 1000, 8)):
        assert more["total"] > one["total"]
    assert training.estimate([path], 50_000, 1)["learning"] > one["learning"]


def test_memory_stays_below_the_bound(tmp_path):
    source = random.Random(11)
    words = ["".join(source.choices("etaoinshrdlu", k=source.randint(2, 9))) for _ in range(30_000)]
    path = tmp_path / "text"
    with path.open("w") as file:
        for _ in range(60):
            file.write(" ".join(source.choices(words, k=100_000)) + END)
    assert path.stat().st_size > 35_000_000
    program = (
        "import resource, sys\n"
        "from groundup.tokenizer import training\n"
        "from groundup.tokenizer.fast import objects\n"
        "for unit in ('count', 'learn', 'scan_gpt2'): objects.addresses(unit)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "bound = 30_000_000\n"
        "merges = training.train([sys.argv[1]], 1000, ['<|endoftext|>'], workers=2, memory=bound)\n"
        "grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024\n"
        "print(len(merges), grown, grown < bound)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0::2] == ["743", "True"], done.stdout


# --- stopping and going on


def test_counts_go_on_where_they_were(tmp_path, small_steps):
    path = write(tmp_path / "text", documents(12))
    expected = count_readably([path])

    def stop(stage, done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count_files([path], progress=stop, state=tmp_path / "state", workers=1)
    told = []
    again = count_files([path], progress=lambda *what: told.append(what), state=tmp_path / "state", workers=2)
    assert again == expected
    assert told[0][1] > told[0][2] / 3
    told.clear()
    assert count_files([path], progress=lambda *what: told.append(what), state=tmp_path / "state") == expected
    assert told == []  # all was done


def test_the_number_of_invalid_sequences_survives_a_stop(tmp_path, small_steps, caplog):
    path = tmp_path / "text"
    path.write_bytes(b"wrong \xff bytes, " * 1000)
    for _ in range(2):
        caplog.clear()
        count_files([path], state=tmp_path / "state")
        assert "1000 invalid UTF-8 sequences" in caplog.messages[-1]


@pytest.mark.parametrize("change", ["file", "pattern", "special tokens", "damage"])
def test_counts_of_something_else_are_not_gone_on_from(change, tmp_path, small_steps, caplog):
    path = write(tmp_path / "text", documents(13))
    count_files([path], state=tmp_path / "state")
    kept = tmp_path / "state" / training.STATE_FILE
    pattern, special_tokens = "gpt2", (END,)
    if change == "file":
        path.write_text(path.read_text() + " more")
    elif change == "pattern":
        pattern = "cl100k"
    elif change == "special tokens":
        special_tokens = (END, "the")
    else:
        kept.write_bytes(kept.read_bytes()[:-1])
    assert count_files([path], special_tokens, pattern, state=tmp_path / "state") == count_readably(
        [path], special_tokens, pattern
    )
    assert "counting begins anew" in caplog.messages[-1]


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    words = words_of(Counter({b"a": 1, b"\0": 2, b"": 3, b"word": 2**40}))
    job = {"pattern": "gpt2"}
    path = tmp_path / "counts"
    count_state.save(path, job, count_state.Progress({(0, 0, 10), (1, 5, 9)}, {1: 4}, words))
    kept = count_state.load(path, job)
    assert (kept.ranges, kept.invalid) == ({(0, 0, 10), (1, 5, 9)}, {1: 4})
    assert dict(kept.words.items()) == dict(words.items())
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert count_state.load(path, job).ranges == set(), place
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert count_state.load(path, job).ranges == set(), length


TRAINER = """
import hashlib, sys, time
from groundup.tokenizer import training, word_count

training.STEP = 1000
training._SECONDS_BETWEEN_SAVES, training._SAVING_SHARE = 0.0, 1e9
text, state = sys.argv[1:]

def progress(stage, done, total):
    print(done, flush=True)
    time.sleep(0.002)

merges = training.train([text], 600, ["<|endoftext|>"], progress=progress, workers=2, state=state)
print("merges", hashlib.sha256(repr(merges).encode()).hexdigest(), flush=True)
"""


def train_with_kills(path, state, source, kills):
    """Start training again and again, killed after some lines of progress: (first lines, the last line)."""
    begun = []
    for run in range(kills + 1):
        child = subprocess.Popen([sys.executable, "-c", TRAINER, path, state], stdout=subprocess.PIPE, text=True)
        assert child.stdout
        lines = []
        limit = source.randint(1, 8) if run < kills else 10**9
        for line in child.stdout:
            lines.append(line.split())
            if len(lines) == limit:
                child.kill()
                break
        child.stdout.close()
        child.wait()
        begun.append(lines[0])
        if lines[-1][0] == "merges":
            break
    return begun, lines[-1]


@pytest.mark.parametrize("kills", [3, pytest.param(times(20), marks=pytest.mark.slow)])
def test_a_training_that_is_killed_learns_the_same_merges(kills, tmp_path):
    path = write(tmp_path / "text", documents(14, 30 * kills + 40))
    whole = subprocess.run([sys.executable, "-c", TRAINER, path, tmp_path / "whole"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    begun, last = train_with_kills(path, tmp_path / "state", random.Random(15), kills)
    assert last == whole.stdout.splitlines()[-1].split()
    assert len(begun) > kills / 2
    assert begun[-1][0] == "merges" or int(begun[-1][0]) > int(begun[0][0])  # it did go on
    assert not (tmp_path / "state" / training.STATE_FILE).exists()


TEXTS = [f"Text number {number} has the word w{number % 97} and ends. " * (number % 4 + 1) for number in range(400)]


def interrupted(count):
    yield from TEXTS[:count]
    raise KeyboardInterrupt


@pytest.mark.parametrize("workers", [1, 3])
def test_texts_that_were_counted_are_not_counted_again(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(training, "_GROUP_CHARACTERS", 500)
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(training, "_SAVING_SHARE", 1e9)
    expected = dict(training.count_texts(TEXTS).items())
    for count in (150, 20, 399):
        with pytest.raises(KeyboardInterrupt):
            training.count_texts(interrupted(count), workers=workers, state=tmp_path)
    done = []
    words = training.count_texts(TEXTS, workers=workers, state=tmp_path, progress=lambda *told: done.append(told))
    assert dict(words.items()) == expected
    assert 0 < done[-1][1] < sum(map(len, TEXTS)) // 4
    training.forget(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_counts_of_other_texts_are_refused(tmp_path):
    training.count_texts(TEXTS, state=tmp_path)
    with pytest.raises(ValueError, match="counts of other texts"):
        training.count_texts(["Something else.", *TEXTS[1:]], state=tmp_path)
    assert dict(training.count_texts(TEXTS, state=tmp_path).items()) == dict(training.count_texts(TEXTS).items())
