"""Seconds that the stages after pretraining will need, kept free so that the whole build ends on its budget."""

from dataclasses import dataclass, fields

from groundup.accounting.plan import TextFacts, TrainingPlan

CHAT_SHARE, MOST_CHAT_SECONDS = 0.05, 60.0
SAMPLE_SECONDS = 3.0
REPORT_SECONDS = 3.0
# Evaluation runs forward only (a third of a training step), on windows that overlap by half, in fp32 and not
# compiled: measured at about nine tenths of a training step's time per held-out token.
EVALUATION_STEPS_PER_TOKEN = 1.0
SLACK_SHARE, LEAST_SLACK_SECONDS = 0.01, 1.0


@dataclass(frozen=True)
class Reserve:
    """Predicted seconds by stage."""

    evaluation: float
    chat: float
    samples: float
    report: float
    slack: float

    @property
    def total(self) -> float:
        return sum(getattr(self, f.name) for f in fields(self))


def reserve_for(made: TrainingPlan, facts: TextFacts, budget_seconds: float, chat: bool) -> Reserve:
    """The reserve of a plan. A small budget keeps the same stages and shortens the chat tuning."""
    held_out_tokens = facts.held_out_bytes / made.bytes_per_token
    per_token = made.seconds_per_step / made.batch_tokens
    return Reserve(
        evaluation=1.0 + EVALUATION_STEPS_PER_TOKEN * per_token * held_out_tokens,
        chat=min(CHAT_SHARE * budget_seconds, MOST_CHAT_SECONDS) if chat else 0.0,
        samples=SAMPLE_SECONDS,
        report=REPORT_SECONDS,
        slack=max(SLACK_SHARE * budget_seconds, LEAST_SLACK_SECONDS),
    )
