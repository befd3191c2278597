import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """What a user sees, who runs without the type checks of the tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
