"""For every test of inference."""

import pytest

from groundup.inference.constraint import constraint


@pytest.fixture(autouse=True, scope="session")
def time_to_compile_constraints():
    """Checked types take their time, and so does a garbage collection after thousands of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constraint, "COMPILE_SECONDS", 30.0)
        yield
