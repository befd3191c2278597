"""Who may ask: keys on every route, hosts, origins, rates, bodies; each refusal is OpenAI's JSON."""

import json

import pytest
from fastapi import FastAPI

from groundup.inference.server import Keys, Settings, create_app, read_keys
from groundup.inference.server.gate import OPEN, Gate, host_name
from groundup.inference.server.run import check_exposure
from groundup.inference.service import Service
from tests.inference.server.conftest import KEY, OTHER
from tests.inference.server.serving import new_engine, post_bytes, running_server

ASK = {"prompt": "the", "max_tokens": 1}


def routes(engine):
    """(method, path) of every route that the application has."""
    service = Service(engine)
    try:
        gate = create_app(service)
        assert isinstance(gate, Gate)
        assert isinstance(gate.app, FastAPI)
        pairs = [(m, r.path.replace("{model_name:path}", "x")) for r in gate.app.routes for m in r.methods]
    finally:
        service.close()
    assert len(pairs) >= 8
    return pairs


def is_error(body):
    error = json.loads(body)["error"]
    return set(error) == {"message", "type", "param", "code"} and isinstance(error["message"], str)


BAD_KEYS = ("", KEY[:-1], KEY + "x", "x" * 10_000, "schlüssel-äöü-123456", KEY.upper(), f"{KEY} {KEY}")


def test_every_route_needs_a_key_but_those_of_the_list(locked, engine):
    for method, path in routes(engine):
        body = b"{}" if method == "POST" else None
        status, _, answer = locked.ask(method, path, body)
        if (method, path) in OPEN:
            assert status == 200, path
            continue
        assert (status, is_error(answer) or method == "HEAD") == (401, True), path
        for key in BAD_KEYS:
            given = {"Authorization": f"Bearer {key}".encode().decode("latin-1")}
            assert locked.ask(method, path, body, **given)[0] == 401, (path, key[:20])
        assert locked.ask(method, path, body, Authorization=f"Basic {KEY}")[0] == 401
        assert locked.ask(method, path, body, Authorization=f"Bearer {KEY}")[0] not in (401, 403), path


@pytest.mark.parametrize("path", ["/nothing", "/v1/files", "/v1/../metrics", "//metrics", "/metrics/", "/health/x"])
def test_paths_that_are_none_need_a_key_too(locked, path):
    assert locked.ask("GET", path)[0] == 401
    assert locked.ask("DELETE", "/health")[0] == 401


def test_both_keys_are_let_in_and_a_second_header_is_not(locked):
    for key in (KEY, OTHER):
        assert locked.post("/v1/completions", ASK, Authorization=f"Bearer {key}")[0] == 200
    data = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nAuthorization: Bearer x\r\n"
    assert locked.raw(f"{data}Connection: close\r\n\r\n".encode()).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    "path",
    ["/../etc/passwd", "/%2e%2e/etc/passwd", "/%252e%252e/x", "/..\\x", "/etc/passwd", "/%00", "/static/../x", "/%fc"],
)
def test_no_path_is_a_file(server, path):
    status, _, answer = server.ask("GET", path)
    assert (status, is_error(answer)) == (404, True)


def test_wrong_methods(server):
    for method, path in (("GET", "/v1/completions"), ("POST", "/health"), ("OPTIONS", "/v1/models"), ("PUT", "/")):
        status, headers, answer = server.ask(method, path, b"{}" if method in ("POST", "PUT") else None)
        assert (status, is_error(answer)) == (405, True)
        assert "access-control-allow-origin" not in headers


HOSTS = {
    "localhost": True, "localhost:8000": True, "127.0.0.1": True, "[::1]:80": True, "LOCALHOST": True,
    "evil.example": False, "localhost.evil.example": False, "127.0.0.1.evil": False, "": False, "[::2]": False,
    "localhost@evil": False, "0.0.0.0": False,
}  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_hosts(server, host):
    answer = server.raw(f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200" if HOSTS[host] else b"HTTP/1.1 421")
    assert host_name(host.lower()) in Settings().hosts or not HOSTS[host]


def test_two_hosts_or_none(server):
    two = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\nConnection: close\r\n\r\n"
    assert server.raw(two).startswith(b"HTTP/1.1 4")
    assert server.raw(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 4")
    assert server.raw(b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421")


ORIGINS = (
    "null", "http://evil.example", "http://localhost.evil", "http://localhost:1", "https://127.0.0.1", "file://",
)  # fmt: skip


@pytest.mark.parametrize("origin", ORIGINS)
def test_foreign_origins(server, origin):
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("OPTIONS", "/v1/completions")):
        status, headers, answer = server.ask(method, path, ASK if method == "POST" else None, Origin=origin)
        assert (status, is_error(answer)) == (403, True)
        assert not [name for name in headers if name.startswith("access-control")]


def test_own_and_allowed_origins(server):
    assert server.ask("GET", "/v1/models", Origin=server.url)[0] == 200
    assert server.ask("GET", "/v1/models", Sec_Fetch_Site="cross-site")[0] == 403
    assert server.ask("GET", "/", Sec_Fetch_Site="cross-site")[0] == 200
    with running_server(new_engine(), Settings(origins=("https://ours.example",))) as other:
        assert other.ask("GET", "/v1/models", Origin="https://ours.example")[0] == 200
        assert other.ask("GET", "/v1/models", Origin="https://theirs.example")[0] == 403


def test_headers_of_every_answer(server):
    for path in ("/", "/health", "/nothing", "/metrics"):
        _, headers, _ = server.ask("GET", path)
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_form_can_send_is_refused(server, kind):
    status, _, answer = server.ask("POST", "/v1/completions", json.dumps(ASK).encode(), Content_Type=kind)
    assert (status, is_error(answer)) == (415, True)


def test_rates_are_per_key():
    with running_server(new_engine(), Settings(requests_per_minute=3), Keys([KEY, OTHER])) as server:
        codes = [server.ask("POST", "/v1/completions", ASK, Authorization=f"Bearer {KEY}") for _ in range(5)]
        assert [status for status, *_ in codes] == [200, 200, 200, 429, 429]
        assert int(codes[-1][1]["retry-after"]) >= 1
        assert is_error(codes[-1][2])
        assert server.post("/v1/completions", ASK, Authorization=f"Bearer {OTHER}")[0] == 200
        assert server.ask("GET", "/v1/models", Authorization=f"Bearer {KEY}")[0] == 200


def test_bodies_that_are_too_large(server):
    limit = Settings().max_body
    told = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**9}\r\n\r\n".encode()
    assert server.raw(told).startswith(b"HTTP/1.1 413")
    assert server.raw(told.replace(b"1000000000", b"9" * 40)).startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert b"413" in server.raw(head + chunks * (limit // 0x10000 + 2))[:40]


def test_who_sends_all_of_a_body_that_is_too_large_is_still_answered(server):
    """The server closes with the rest unread: a reset would end the sending, or lose the answer."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6000000\r\n\r\n"
    for _ in range(5):
        answer = server.raw(head + b" " * 6_000_000)
        assert answer.startswith(b"HTTP/1.1 413") and is_error(answer.partition(b"\r\n\r\n")[2])
    with server.connect() as connection, pytest.raises(OSError):
        connection.sendall(head + b" " * 64_000_000)  # patience has an end
        connection.recv(1000)
        connection.sendall(b" " * 64_000_000)


def test_lies_about_bodies(server):
    both = post_bytes("/v1/completions", ASK, "Transfer-Encoding: chunked\r\n")
    assert server.raw(both).startswith(b"HTTP/1.1 400")
    packed = post_bytes("/v1/completions", ASK, "Content-Encoding: gzip\r\n")
    assert server.raw(packed).startswith(b"HTTP/1.1 415")
    chunked = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    answer = server.raw(chunked)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    twice = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"
    assert server.raw(twice).startswith(b"HTTP/1.1 400")


def test_keys_from_a_file_or_a_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("GROUNDUP_API_KEYS", raising=False)
    assert not read_keys(None)
    monkeypatch.setenv("GROUNDUP_API_KEYS", f"{KEY}, {OTHER}")
    assert read_keys(None).number_of(f"Bearer {OTHER}".encode()) == 1
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}\n\n")
    assert read_keys(file).number_of(f"bearer {KEY}".encode()) == 0
    file.write_text("# none\n")
    with pytest.raises(ValueError, match="no keys"):
        read_keys(file)
    file.write_text("short\n")
    with pytest.raises(ValueError, match="key 1 is no 16 printable"):
        read_keys(file)


def test_salts_differ_by_key_and_start():
    keys = Keys([KEY, OTHER])
    salts = {keys.salt(0), keys.salt(1), Keys([KEY]).salt(0)}
    assert len(salts) == 3
    assert keys.salt(0) == keys.salt(0)


def test_others_are_not_let_in_without_keys():
    for host in ("127.0.0.1", "::1", "localhost"):
        check_exposure(host, Keys([]))
    check_exposure("0.0.0.0", Keys([KEY]))
    with pytest.raises(ValueError, match="can be reached from other machines"):
        check_exposure("0.0.0.0", Keys([]))
