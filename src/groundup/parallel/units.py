"""Which modules of a model are gathered together, and which parameters are whose."""

from collections.abc import Callable, Iterable, Iterator

from torch import nn

from groundup.parallel.flat import Entry

Units = Iterable[nn.Module] | Callable[[str, nn.Module], bool]


def choose_units(model: nn.Module, units: Units | None) -> list[nn.Module]:
    if units is None:
        return list(_listed(model))
    if callable(units):
        return [module for name, module in model.named_modules() if name and units(name, module)]
    chosen, known = list(units), set(model.modules()) - {model}
    for module in chosen:
        if module not in known:
            raise ValueError(f"fully_shard: a unit of class {type(module).__name__} is no module inside of the model")
    return chosen


def _listed(module: nn.Module) -> Iterator[nn.Module]:
    """Children of the outermost lists and dicts of modules, where they have parameters and are called themselves."""
    inside = isinstance(module, nn.ModuleList | nn.ModuleDict)
    for child in module.children():
        if inside and type(child).forward is not nn.Module.forward:
            yield from [child] if any(True for _ in child.parameters()) else []
        else:
            yield from _listed(child)


def assign_parameters(model: nn.Module, modules: list[nn.Module]) -> list[list[Entry]]:
    """The parameters of the model itself and of each unit. One that several units would own is the model's."""
    names = {id(p): name for name, p in model.named_parameters()}
    users: dict[int, set[int]] = {}
    owners: dict[int, dict[tuple[int, str], tuple[nn.Module, str]]] = {}
    stops = set(modules)
    for number, unit in enumerate([model, *modules]):
        for module, name, p in _own_parameters(unit, stops):
            users.setdefault(id(p), set()).add(number)
            owners.setdefault(id(p), {})[id(module), name] = (module, name)
    groups: list[list[Entry]] = [[] for _ in range(len(modules) + 1)]
    for p in model.parameters():
        number = next(iter(users[id(p)])) if len(users[id(p)]) == 1 else 0
        groups[number].append(Entry(names[id(p)], p, tuple(owners[id(p)].values())))
    return groups


def _own_parameters(module: nn.Module, stops: set[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for name, p in module._parameters.items():
        if p is not None:
            yield module, name, p
    for child in module.children():
        if child not in stops:
            yield from _own_parameters(child, stops)
