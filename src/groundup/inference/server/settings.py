"""What a server allows: every bound in one place."""

from dataclasses import dataclass

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Settings:
    """Bounds of a server. Sizes are in bytes, times in seconds.

    hosts: names that a request may give as its Host, without port. Anything else is refused, which stops web pages
        that resolve their own name to this machine.
    origins: foreign origins whose pages may call ("https://example.org"); the server's own always may.
    """

    model_name: str = "groundup"
    hosts: tuple[str, ...] = LOOPBACK
    origins: tuple[str, ...] = ()
    max_body: int = 1 << 20
    max_header: int = 32 << 10
    max_connections: int = 1024
    max_messages: int = 1024
    max_choices: int = 128  # prompts times n of one request
    max_tools: int = 64
    max_depth: int = 32  # of nested lists and objects in a body
    requests_per_minute: int | None = None  # for each key
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 30.0  # of a connection between two requests
    write_seconds: float = 30.0  # that a client may leave a full buffer unread
    request_seconds: float = 600.0
    drain_seconds: float = 10.0
    exit_on_failure: bool = True  # of the engine; else errors are answered until somebody ends the server
    hang_seconds: float = 300.0  # in one step of the engine: then it counts as hung; a first step may have to compile
