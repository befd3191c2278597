"""A small model with the tokens of conversations, and servers of it on free ports."""

import pytest

from groundup.inference import Engine
from groundup.inference.server import Keys, Settings
from tests.inference.server.serving import new_engine, running_server

KEY, OTHER = "test-key-0123456789", "another-key-98765432"


@pytest.fixture(scope="package")
def engine() -> Engine:
    """To compare with. Never one that a server runs: an engine is for one thread."""
    return new_engine()


@pytest.fixture(scope="module")
def server():
    """Without keys, as on one's own machine."""
    with running_server(new_engine(), Settings(model_name="tiny")) as running:
        yield running


@pytest.fixture(scope="module")
def locked():
    """With two keys."""
    with running_server(new_engine(), Settings(model_name="tiny"), Keys([KEY, OTHER])) as running:
        yield running
