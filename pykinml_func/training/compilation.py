"""How a step is run: recorded once a shape as a list of torch operations, which torch.compile may take further."""

from __future__ import annotations

import operator
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.fx.passes.dialect.common.cse_pass import CSEPass
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from pykinml_func.errors import ConfigError

_DEFAULT_COMPILER = "clang++" if sys.platform == "darwin" else "g++"
"""What torch looks for where CXX names none."""

_COMPILED_STEPS = 25_000
"""Steps after which torch.compile has saved what it costs: some 30 s cold, for 1.2 ms a step of energy training. A step
of force training gains nothing: the compiled AEVs and matrix products are most of it.
"""

_EAGER_CALLS = 40
"""Calls with one shape before it is recorded, which costs as much as some hundred calls save."""

_Signature = tuple[TreeSpec, tuple[tuple[torch.Size, torch.dtype] | None, ...]]


def repays_compilation(mode: Literal["auto", "on", "off"], forces: bool, steps: int) -> bool:
    """Whether a run of so many training steps, to forces or not, compiles them; `auto` asks whether that saves more
    time than it costs.

    The answer depends on nothing that is measured, so that a run can be repeated bit for bit. Raises ConfigError as
    `check_compiler`.
    """
    if mode != "auto":
        check_compiler(mode)
        return mode == "on"
    return _compiler() is not None and not forces and steps > _COMPILED_STEPS


def check_compiler(mode: Literal["auto", "on", "off"]) -> None:
    """Raises ConfigError where compilation is asked for and there is no C++ compiler."""
    if mode == "on" and _compiler() is None:
        raise ConfigError(
            f"compile = on needs a C++ compiler, and none was found; install {_DEFAULT_COMPILER} (or name another in "
            "the environment variable CXX), or set compile = off"
        )


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX") or _DEFAULT_COMPILER)


class RecordedStep:
    """A pure function of pytrees of tensors, of one structure each; shapes that come often are recorded.

    A recorded step is the list of torch operations that the function comes down to once grad, vjp and vmap have done
    their work: the same operations on the same numbers, without the transforms' overhead, which is most of the time of
    a small step. What is not a tensor must be the same in every call.
    """

    def __init__(self, step: Callable[..., Any], compiled: bool = False, eager_calls: int = _EAGER_CALLS) -> None:
        """compiled: whether recorded steps are handed to torch.compile, at the first call with a shape; the code is
        kept in the user's cache directory (or TORCHINDUCTOR_CACHE_DIR), for later runs.
        """
        self._step, self._compiled = step, compiled
        self._eager_calls = 0 if compiled else eager_calls
        self._calls: Counter[_Signature] = Counter()
        self._recorded: dict[_Signature, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Run the step."""
        leaves, structure = tree_flatten(arguments)
        shapes = (None if leaf is None else (leaf.shape, leaf.dtype) for leaf in leaves)
        signature = structure, tuple(shapes)
        recorded = self._recorded.get(signature)
        if recorded is None:
            if self._calls[signature] < self._eager_calls:
                self._calls[signature] += 1
                return self._step(*arguments)
            recorded = self._recorded[signature] = self._record(leaves, structure)
        with torch.no_grad():
            return recorded(*leaves)

    @property
    def shapes(self) -> int:
        """Different shapes that were recorded."""
        return len(self._recorded)

    def _record(self, leaves: list[Any], structure: TreeSpec) -> Callable[..., Any]:
        """The step for the shapes of `leaves`, as a function of leaves."""
        # two arguments that are one tensor now may be two in the next call
        leaves = [leaf.detach() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        recorder = _Recorder(leaves)
        with recorder, torch.no_grad():
            results, found = tree_flatten(self._step(*tree_unflatten(leaves, structure)))
        graph = _simplified(recorder.graph_of(results))
        run = _compile(graph) if self._compiled else graph
        return lambda *leaves: tree_unflatten(run(*leaves), found)


class _Recorder(TorchDispatchMode):
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


def _simplified(graph: GraphModule) -> GraphModule:
    """The graph without what is computed twice, what is the same in every call, and views that lead nowhere: vmap
    leaves many, and each costs as much time as a small operation.
    """
    for node in graph.graph.nodes:
        if isinstance(node.target, OpOverload) and node.target._schema.is_mutable and not _rewrite(node):
            return graph  # what is written into may have other names, which nothing below looks for
    without_repeats: Any = CSEPass()(graph)
    graph = without_repeats.graph_module
    for node in graph.graph.nodes:
        if node.op == "call_function" and {argument.op for argument in node.all_input_nodes} == {"get_attr"}:
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


def _compile(graph: Callable[..., Any]) -> Callable[..., Any]:
    from platformdirs import user_cache_path

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache_path("pykinml-func") / "inductor"))
    # each shape is a graph of its own, which counts as none of another's
    isolated: dict[str, Any] = {"isolate_recompiles": True}  # not in torch's stubs
    return torch.compile(graph, fullgraph=True, dynamic=False, **isolated)
