"""A recipe under a plan: what of it ranks can divide, the model divided, and the whole one again."""

from collections.abc import Callable
from typing import Any

from groundup.model import Transformer
from groundup.parallel.apply import GroundupEngine, apply_plan
from groundup.parallel.plan import ParallelPlan
from groundup.recipes.recipe import Recipe
from groundup.train.compiling import compile_blocks


def check_plan_of(recipe: Recipe, plan: ParallelPlan) -> None:
    """Raise ValueError for a plan under which this recipe cannot be trained."""
    if plan.pipeline > 1:
        raise ValueError("plan: a pipeline's stages are no whole model, as training needs; use them from Python")
    if plan.shard * plan.tensor > 1 and recipe.optimizer == "muon":
        axis = "shard" if plan.shard > 1 else "tensor"
        raise ValueError(f"plan: {axis} cuts matrices, which Muon needs whole; give optimizer=adamw, or use zero")
    if recipe.compile and not _leaves_blocks(plan):
        raise ValueError("plan: compile=true with what changes blocks; leave compile out, or use data and zero alone")
    if recipe.batch_size % (parts := plan.data * plan.shard * plan.expert):
        raise ValueError(f"batch_size={recipe.batch_size} cannot be shared by {parts} parts of rows of {plan.text}")


def divide(
    recipe: Recipe, model: Transformer, plan: ParallelPlan, make: Callable[[Recipe, Any, bool], Any]
) -> GroundupEngine:
    """The model over the ranks of the plan, with the optimizer that `make` gives for (recipe, model, alike).

    alike: whether all ranks have the same matrices and gradients.
    """
    if recipe.compile is not False and _leaves_blocks(plan):
        compile_blocks(model, required=recipe.compile is True)
    engine = apply_plan(model, plan)
    alike = plan.zero == 0 and plan.data * plan.context == plan.size
    engine.optimize(lambda _: make(recipe, engine.modules[0], alike))
    return engine


def whole_model(recipe: Recipe, part: Transformer, engine: GroundupEngine) -> Transformer:
    """What all ranks have together, on each of them: a collective."""
    model = Transformer(recipe.model).to(part.device)
    model.load_state_dict(engine.full_state_dict())
    model.compute_dtype, model.dropout = part.compute_dtype, part.dropout
    return model


def _leaves_blocks(plan: ParallelPlan) -> bool:
    """Whether blocks stay what they are, so that they may be compiled."""
    return plan.data == plan.size and not plan.recompute
