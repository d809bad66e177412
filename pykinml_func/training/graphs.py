"""A step as the list of torch operations that it comes down to: recorded, made shorter, and run."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.fx.passes.dialect.common.cse_pass import CSEPass
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pykinml_func.potential.aev_kernel import CPU_FUNCTIONS


class Recorder(TorchDispatchMode):
    """Writes down every torch operation that runs under it.

    What make_fx does, less its import of torch's compiler, which takes longer than many runs.
    """

    def __init__(self, leaves: list[Any]) -> None:
        """leaves: the arguments, which stay arguments; all other tensors that operations meet become constants."""
        super().__init__()
        self._graph, self._constants = Graph(), dict[str, torch.Tensor]()
        self._known: dict[int, tuple[torch.Tensor, Node]] = {}
        for place, leaf in enumerate(leaves):
            self._name(leaf, self._graph.placeholder(f"leaf_{place}"))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch asks this of a mode; to be skipped by its compiler, which never runs here, would import it."""
        return False

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and keep it."""
        kwargs = kwargs or {}
        node_args, node_kwargs = tree_map(self._node_of, (args, kwargs))
        value = operation(*args, **kwargs)
        node = self._graph.call_function(operation, node_args, node_kwargs)
        if isinstance(value, list | tuple):
            for place, part in enumerate(value):
                self._name(part, self._graph.call_function(operator.getitem, (node, place)))
        else:
            self._name(value, node)
        return value

    def graph_of(self, results: list[Any]) -> GraphModule:
        """What was recorded, as a function of the leaves that returns `results`."""
        self._graph.output([self._node_of(result) for result in results])
        return GraphModule(self._constants, self._graph)

    def _name(self, value: Any, node: Node) -> None:
        if isinstance(value, torch.Tensor):
            node.meta["layout"] = value.shape, value.stride()
            self._known[id(value)] = value, node  # with the tensor, whose id another would else be given

    def _node_of(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self._known:
            name = f"constant_{len(self._constants)}"
            self._constants[name] = value
            self._name(value, self._graph.get_attr(name))
        return self._known[id(value)][1]


def simplified(graph: GraphModule) -> GraphModule:
    """The graph without what is computed twice, what is the same in every call, and views that lead nowhere: vmap
    leaves many, and each costs as much time as a small operation.
    """
    for node in graph.graph.nodes:
        if isinstance(node.target, OpOverload) and node.target._schema.is_mutable and not _rewrite(node):
            return graph  # what is written into may have other names, which nothing below looks for
    without_repeats: Any = CSEPass()(graph)
    graph = without_repeats.graph_module
    for node in graph.graph.nodes:
        if _is_constant(node):
            _fold(graph, node)
        elif node.target in _VIEWS:
            _shorten(node)
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.recompile()
    return graph


def _rewrite(node: Node) -> bool:
    """Let an operation that writes into its argument make a new tensor instead, where nothing else sees the argument.
    Whether it does.
    """
    operation, written = node.target, node.all_input_nodes[0]
    fresh = isinstance(written.target, OpOverload) and all(
        result.alias_info is None for result in written.target._schema.returns
    )
    # a shape is seen by no other name of a tensor
    if operation not in _RESHAPES and not (fresh and list(written.users) == [node]):
        return False
    name, overload = operation._schema.name, operation._schema.overload_name or "default"  # type: ignore[union-attr]
    node.target = getattr(getattr(_OPERATIONS, name.removeprefix("aten::").removesuffix("_")), overload)
    return True


def _is_constant(node: Node) -> bool:
    """Whether it is computed from constants, or from nothing."""
    if node.op != "call_function" or any(argument.op != "get_attr" for argument in node.all_input_nodes):
        return False
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded not in node.target.tags


def _fold(graph: GraphModule, node: Node) -> None:
    """Replace what is computed from constants by its value."""

    def value_of(argument: Node) -> Any:
        return getattr(graph, str(argument.target))

    value = node.target(*map_arg(node.args, value_of), **map_arg(node.kwargs, value_of))  # type: ignore[operator]
    if not isinstance(value, torch.Tensor):
        return
    name = f"_folded_{node.name}"
    graph.register_buffer(name, value, persistent=False)
    with graph.graph.inserting_before(node):
        folded = graph.graph.get_attr(name)
    folded.meta = node.meta
    node.replace_all_uses_with(folded)


def _shorten(node: Node) -> None:
    """Replace a view of views that comes back to where it began by the beginning, and begin others there."""
    origin, same, plain = node, None, None
    while origin.target in _VIEWS:
        origin = origin.all_input_nodes[0]
        if origin.meta["layout"] == node.meta["layout"]:
            same = origin
        if _is_contiguous(origin):
            plain = origin
    if same is not None:
        node.replace_all_uses_with(same)
    elif plain is not None and _is_contiguous(node):
        node.target, node.args, node.kwargs = _OPERATIONS.view.default, (plain, list(node.meta["layout"][0])), {}


def _is_contiguous(node: Node) -> bool:
    shape, strides = node.meta["layout"]
    return torch.empty_strided(shape, strides, device="meta").is_contiguous()


_OPERATIONS = torch.ops.aten
_RESHAPES = {_OPERATIONS.squeeze_.dim, _OPERATIONS.squeeze_.dims, _OPERATIONS.unsqueeze_.default}
"""Operations that change the shape of their argument in place."""

_VIEWS = {
    _OPERATIONS.view.default,
    _OPERATIONS._unsafe_view.default,
    _OPERATIONS.expand.default,
    _OPERATIONS.unsqueeze.default,
    _OPERATIONS.squeeze.dim,
    _OPERATIONS.squeeze.dims,
    _OPERATIONS.permute.default,
    _OPERATIONS.transpose.int,
    _OPERATIONS.detach.default,
}
"""Operations whose result is all of their first argument's memory, in another shape."""


def plain_function(graph: GraphModule) -> Callable[..., Any]:
    """The graph as a function that spends no time on the way to its operations. Takes over `graph`."""
    nodes, constants = list(graph.graph.nodes), []
    for node in nodes:
        if node.op == "get_attr":  # as an argument it is found sooner than as an attribute of a module
            constants.append(getattr(graph, str(node.target)))
            node.op = "placeholder"
            nodes[0].prepend(node)
        elif node.op == "call_function":
            _call_directly(node)
    graph.recompile()
    return partial(graph.forward, *constants)


def _call_directly(node: Node) -> None:
    """Call the function behind an operation of ours, or torch's function or method of an operation's name: no arguments
    are compared with a schema then, which takes 2 µs and more.
    """
    if not isinstance(node.target, OpOverload):
        return
    name = node.target._opname
    if node.target in CPU_FUNCTIONS:
        node.target = CPU_FUNCTIONS[node.target]
    elif node.target.namespace == "aten" and isinstance(getattr(torch, name, None), BuiltinFunctionType):
        node.target = getattr(torch, name)
    elif node.target.namespace == "aten" and isinstance(getattr(torch.Tensor, name, None), MethodDescriptorType):
        node.op, node.target = "call_method", name
