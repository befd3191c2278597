"""torch's optimizer without torch's compiler.

    Optimizer.add_param_group, state_dict, ...      torch hides them from its compiler, and so imports it to make one
    Uncompiled.add_param_group, state_dict, ...     the same functions bare: a program that compiles nothing loads none

The compiler takes longer to import than the rest of torch, on every rank of every run.
"""

import inspect

import torch


class Uncompiled(torch.optim.Optimizer):
    """As `torch.optim.Optimizer`. What keeps its books stands outside of any compiled step anyway."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
