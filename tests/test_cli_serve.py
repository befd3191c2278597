"""`groundup serve` as a process: it answers, says where, refuses what is unsafe, and drains on SIGTERM."""

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

from groundup import presets
from groundup.cli import main
from groundup.environ import for_child
from groundup.model import Transformer
from groundup.model.source import Source, write_folder
from groundup.tokenizer import Tokenizer

SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
KEY = "a-key-that-is-long-enough"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run with a pretrained model and one that was tuned to chat."""
    tokenizer = Tokenizer.train_from_iterator(["the cat in the hat"] * 9, 270, SPECIAL)
    run = tmp_path_factory.mktemp("runs") / "cats"
    for folder, layers in ((run, 1), (run / "chat", 2)):
        config = presets.llama(d_model=16, num_layers=layers, num_heads=2, vocab_size=270, context_length=4096)
        write_folder(Source(Transformer(config), tokenizer), folder)
    return run


def ask(url, body=None, key=KEY):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=120) as answer:
        return json.load(answer)


def test_it_answers_and_drains(run_folder, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"# for tests\n{KEY}\n")
    command = [sys.executable, "-m", "groundup.cli", "serve", str(run_folder), "--port", "0", "--device", "cpu",
               "--api-keys", str(keys)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=for_child({}))
    try:
        line = process.stdout.readline()
        match = re.fullmatch(r"cats on (http://127\.0\.0\.1:\d+) \(page\), \1/v1 \(OpenAI API\)\n", line)
        assert match, (line, process.stderr.read() if process.poll() is not None else "")
        url = match[1]
        assert ask(f"{url}/health", key=None) == {"status": "ok"}
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(f"{url}/v1/models", key=None)
        assert ask(f"{url}/v1/models")["data"][0]["id"] == "cats"
        messages = [{"role": "user", "content": "the cat"}]
        answer = ask(f"{url}/v1/chat/completions", {"model": "cats", "messages": messages, "max_tokens": 4})
        assert answer["usage"]["completion_tokens"] <= 4
        schema = {"type": "json_object"}
        body = {"model": "cats", "messages": messages, "max_tokens": 4, "response_format": schema}
        assert ask(f"{url}/v1/chat/completions", body)["choices"][0]["message"]["content"].lstrip()[:1] == "{"

        never = {str(token): -100 for token in Tokenizer.load(run_folder).special_tokens.values()}
        long = {"model": "cats", "prompt": "the", "max_tokens": 300, "logit_bias": never}
        late = []
        running = threading.Thread(target=lambda: late.append(ask(f"{url}/v1/completions", long)))
        running.start()
        while ask(f"{url}/stats")["running"] == 0 and running.is_alive():
            pass
        process.send_signal(signal.SIGTERM)
        running.join(60)
        assert late[0]["usage"]["completion_tokens"] == 300  # what had begun came to its end
        assert process.wait(30) == 0
        assert "the cat" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "there are no API keys"),
        (["--api-keys", "missing.txt"], "missing.txt: No such file"),
        (["--batch-size", "0"], "batch_size=0"),
    ],
)
def test_what_is_unsafe_or_makes_no_sense_is_refused(run_folder, capsys, monkeypatch, arguments, message):
    monkeypatch.delenv("GROUNDUP_API_KEYS", raising=False)
    assert main(["serve", str(run_folder), "--port", "0", "--device", "cpu", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_taken_port_is_said_before_the_model_is_loaded(tmp_path, capsys):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(tmp_path), "--port", str(port)]) == 1
    assert f"port {port} of 127.0.0.1: Address already in use" in capsys.readouterr().err
