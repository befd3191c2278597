import pytest

from groundup.scaling import AblationSettings


@pytest.fixture
def tiny():
    """Settings with which a run takes a tenth of a second."""
    return AblationSettings(
        d_model=16, num_layers=1, num_heads=2, context_length=16, batch_size=2, vocab_size=270, steps=6, seeds=2,
        rates=(0.003, 0.01), tune_share=0.5, text_bytes=150_000, scored_bytes=1_500,
    )  # fmt: skip
