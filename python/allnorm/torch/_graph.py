"""What a model's modules read of each other, from its graph of torch.fx."""

from __future__ import annotations

from typing import NamedTuple, Optional

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = type(m).__module__.startswith("allnorm.torch")
        return own or isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


class Calls(NamedTuple):
    """`once`: the modules that are called once, by the call. `read`: names of modules of which something is read, as of conv
    in conv.weight."""

    once: dict[fx.Node, nn.Module]
    read: frozenset[str]

    def before(self, call: fx.Node) -> Optional[fx.Node]:
        """The call whose output is all that `call` reads; None where there is more, or it is no module that is called
        once."""
        only = call.args[0] if len(call.args) == 1 and not call.kwargs else None
        return only if isinstance(only, fx.Node) and only in self.once else None


def calls_of(model: nn.Module) -> Calls:
    """ValueError where torch.fx cannot trace the model."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:
        raise ValueError(f"{type(model).__name__} cannot be traced by torch.fx: {error}") from error
    modules, calls = dict(model.named_modules(remove_duplicate=False)), dict[nn.Module, list[fx.Node]]()
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(modules[node.target], []).append(node)
    read = frozenset(node.target.rpartition(".")[0] for node in graph.nodes if node.op == "get_attr")
    return Calls({nodes[0]: module for module, nodes in calls.items() if len(nodes) == 1}, read)
