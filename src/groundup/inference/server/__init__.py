"""An OpenAI-compatible server over HTTP, with one page to talk to the model."""

from groundup.inference.server.application import create_app
from groundup.inference.server.keys import Keys, read_keys
from groundup.inference.server.run import serve
from groundup.inference.server.settings import Settings

__all__ = ["Keys", "Settings", "create_app", "read_keys", "serve"]
