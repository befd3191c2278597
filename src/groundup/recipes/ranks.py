"""A recipe under a plan: what of it ranks can divide, the model divided, and the whole one again."""

from collections.abc import Callable
from typing import Any

from groundup.config import nearest
from groundup.model import MoEConfig, Transformer
from groundup.parallel.compose import apart
from groundup.parallel.engine import Engine
from groundup.parallel.engines import ENGINES, engine_for
from groundup.parallel.plan import ParallelPlan
from groundup.recipes.recipe import Recipe
from groundup.train.compiling import compile_blocks


def check_plan_of(recipe: Recipe, plan: ParallelPlan, engine: str = "torch") -> None:
    """Raise ValueError for a plan that this engine cannot train the recipe under, naming the other engine if that can.

    What depends on the model itself `engine_for` refuses, on the ranks.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown{nearest(engine, ENGINES)}")
    if fault := _fault(recipe, plan, engine):
        able = [other for other in ENGINES if other != engine and not _fault(recipe, plan, other)]
        raise ValueError(f"plan: {fault}" + (f"; the {able[0]} engine can" if able else ""))


def _fault(recipe: Recipe, plan: ParallelPlan, engine: str) -> str:
    """Why this engine cannot, or ""."""
    if plan.pipeline > 1:
        return "a pipeline's stages are no whole model, as training needs; use them from Python"
    if plan.zero and plan.shard > 1:
        return "zero and shard do not go together: shard divides the optimizer's state already"
    if plan.expert > 1 and not any(isinstance(block.ffn, MoEConfig) for block in recipe.model.blocks):
        return f"expert={plan.expert}, but the model has no experts"
    if engine == "groundup" and (fault := apart(plan)):
        return fault
    if (axis := _cuts_matrices(plan, engine)) and recipe.optimizer == "muon":
        return f"{axis} cuts matrices, which Muon needs whole; give optimizer=adamw, or use zero=1"
    if recipe.compile is True and not _leaves_blocks(plan):
        return "compile=true with what changes blocks; leave compile out, or use data and zero alone"
    if recipe.batch_size % (parts := plan.data * plan.shard * plan.expert):
        return f"batch_size={recipe.batch_size} cannot be shared by {parts} parts of rows of {plan.text}"
    return ""


def _cuts_matrices(plan: ParallelPlan, engine: str) -> str:
    """What of the plan gives each rank other parts of a matrix."""
    if engine == "torch" and plan.zero == 2:
        return "zero=2 of torch's engine"
    return "shard" if plan.shard > 1 else "tensor" if plan.tensor > 1 else ""


def divide(
    recipe: Recipe, model: Transformer, plan: ParallelPlan, make: Callable[[Recipe, Any, bool], Any], engine: str
) -> Engine:
    """The model over the ranks of the plan, with the optimizer that `make` gives for (recipe, parameters, alike).

    parameters: this rank's, or its parts of them, by name. alike: whether all ranks have the same matrices and
    gradients.
    """
    if recipe.compile is not False and _leaves_blocks(plan):
        compile_blocks(model, required=recipe.compile is True)
    ranks = engine_for(model, plan, engine)
    alike = plan.zero == 0 and plan.data * plan.context == plan.size
    ranks.optimize(lambda named: make(recipe, named, alike))
    return ranks


def whole_model(recipe: Recipe, part: Transformer, engine: Engine) -> Transformer:
    """What all ranks have together, on each of them: a collective."""
    model = Transformer(recipe.model).to(part.device)
    model.load_state_dict(engine.full_state_dict())
    model.compute_dtype, model.dropout = part.compute_dtype, part.dropout
    return model


def _leaves_blocks(plan: ParallelPlan) -> bool:
    """Whether blocks stay what they are, so that they may be compiled."""
    return plan.data == plan.size and not plan.recompute
