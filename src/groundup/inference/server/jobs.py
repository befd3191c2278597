"""From a checked request to the engine's jobs: one for each answer, with its seed, its salt and its constraint."""

import asyncio
import copy
from dataclasses import replace
from typing import Any

from groundup.inference.constraint import compile_constraint
from groundup.inference.server.errors import ApiError
from groundup.inference.server.fields import Call
from groundup.inference.service import Job


class Jobs:
    """Makes jobs. Constraints are compiled on another thread, one at a time, within their own time budget."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._turn = asyncio.Semaphore(1)

    async def made(self, prompts: list[list[int]], call: Call, salt: str) -> list[Job]:
        """`n` jobs for each prompt. Answers of a seeded request have seeds that follow each other."""
        constraint = await self._constraint(call)
        seeds = [None if call.params.seed is None else (call.params.seed + i) % 2**63 for i in range(call.n)]
        return [
            Job(prompt, replace(call.params, seed=seed), salt, copy.copy(constraint))
            for prompt in prompts
            for seed in seeds
        ]

    async def _constraint(self, call: Call) -> Any:
        if not call.response_format:
            return None
        kind, source = call.response_format["kind"], call.response_format["source"]
        async with self._turn:
            try:
                return await asyncio.to_thread(
                    compile_constraint, kind, source, self._engine.tokenizer, self._engine.end_ids
                )
            except ValueError as error:
                raise ApiError(400, f"response_format: {error}", "response_format") from None
