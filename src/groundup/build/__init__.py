"""The main job: raw text and a time budget in; a trained, measured, chat-able model and its report out."""

from groundup.build.run import build, resume

__all__ = ["build", "resume"]
