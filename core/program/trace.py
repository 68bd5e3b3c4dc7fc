"""From a module to a step program: torch.fx runs the forward once with proxies, ops record themselves as calls."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from bestiary.core.errors import PluginError
from bestiary.core.ops import elementwise
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.program.places import name_places
from bestiary.core.program.program import Input, Instruction, Part, Program, Result, TorchCall, Value, Weight
from bestiary.layers.cache import CacheSpec, KVCache
from bestiary.layers.step import LayerCache, Step

#: Python's operators on tensors, as the ops they stand for.
_OPERATORS: dict[Callable[..., Any], OpDeclaration[..., Any]] = {
    operator.add: elementwise.add,
    torch.add: elementwise.add,
    operator.mul: elementwise.mul,
    torch.mul: elementwise.mul,
}
_STEP_INPUTS = ("tokens", "positions", "lengths", "logit_rows", "query_starts", "kv_lengths")


def trace(model: nn.Module) -> Program:
    """The program of ``model.forward(step)``; its parameters may be on the meta device.

    Raises:
        PluginError: the forward looks at values or keeps tensors that are no parameters, so it can't be traced.
    """
    tracer = _StepTracer(model)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise PluginError(
            "E-TRACE",
            f"{type(model).__module__}.{type(model).__qualname__}",
            f"the forward can't be traced: {error}",
            expected="control flow that does not look at tensors' values",
        ) from error
    return _lower(graph, tracer, model)


def cache_groups(caches: dict[str, CacheSpec]) -> list[CacheSpec]:
    """The distinct specs in the order of first use: one group of block tables each."""
    return list(dict.fromkeys(caches.values()))


class _StepTracer(fx.Tracer):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.caches = {path: m for path, m in model.named_modules() if isinstance(m, KVCache)}
        self.returned: dict[str, fx.Node] = {}
        self.given: dict[str, fx.Node] = {}
        self.owners: dict[fx.Node, str] = {}
        self._stack = [""]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """fx's place for making the placeholders: ours are the step's tensors, not the forward's parameters."""
        inputs = {name: self._placeholder(name) for name in _STEP_INPUTS}
        specs = cache_groups({path: module.spec for path, module in self.caches.items()})
        slots = [self._placeholder(f"slots.{group}") for group in range(len(specs))]
        tables = [self._placeholder(f"block_tables.{group}") for group in range(len(specs))]
        caches = {}
        for path, module in self.caches.items():
            group = specs.index(module.spec)
            k, v = self._placeholder(f"k.{path}"), self._placeholder(f"v.{path}")
            caches[module] = LayerCache(k, v, slots[group], tables[group])
        return root_fn, [self.root, Step(**inputs, caches=caches)]

    def create_arg(self, a: Any) -> Any:
        try:
            return super().create_arg(a)
        except NotImplementedError:
            return a  # fx knows numbers, strings and tensors; an op's other arguments (a rope config) are constants

    def _placeholder(self, name: str) -> Any:
        return self.create_proxy("placeholder", name, (), {}, name=name.replace(".", "_"))

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.owners[node] = self._stack[-1]
        return node

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        self._stack.append(path)
        try:
            result = forward(*args, **kwargs)
        finally:
            self._stack.pop()
        if isinstance(result, fx.Proxy):
            self.returned[path] = result.node
        if args and isinstance(args[0], fx.Proxy):
            self.given[path] = args[0].node
        return result


def _lower(graph: fx.Graph, tracer: _StepTracer, model: nn.Module) -> Program:
    caches = {path: module.spec for path, module in tracer.caches.items()}
    groups = cache_groups(caches)
    program = Program(
        caches=caches, groups=tuple(groups), group_of={path: groups.index(spec) for path, spec in caches.items()}
    )
    values: dict[fx.Node, Any] = {}
    weights: dict[str, Weight] = {}  # a tied parameter is one weight

    def convert(argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda node: values[node])

    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = program.inputs[node.target] = Input(node.target)
        elif node.op == "get_attr":
            values[node] = weights.setdefault(node.target, _weight(node.target, model))
        elif node.op == "output":
            program.outputs["logits"] = convert(node.args[0])
        elif node.target is operator.getitem and isinstance(values[node.args[0]], tuple):
            values[node] = values[node.args[0]][node.args[1]]
        else:
            instruction = _instruction(node, convert, tracer.owners[node])
            program.instructions.append(instruction)
            results = instruction.results
            values[node] = results[0] if len(results) == 1 else results
    program.drop_unused()
    program.places = name_places(program, _tensors(tracer.returned, values), _tensors(tracer.given, values))
    return program


def _tensors(nodes: Mapping[str, fx.Node], values: Mapping[fx.Node, Any]) -> dict[str, Value]:
    return {path: values[node] for path, node in nodes.items() if isinstance(values[node], Value)}


def _weight(name: str, model: nn.Module) -> Weight:
    try:
        shape = tuple(model.get_parameter(name).shape)
    except AttributeError:
        raise PluginError(
            "E-TRACE",
            f"{type(model).__module__}.{type(model).__qualname__}",
            f"the forward uses the tensor {name}, which is no parameter",
            hint="make it a parameter, or compute it from the config in an op",
        ) from None
    return Weight(name, (Part(name, shape),))


def _instruction(node: fx.Node, convert: Callable[[Any], Any], scope: str) -> Instruction:
    if isinstance(node.target, OpDeclaration):
        count = node.target.results
        names = [node.name] if count == 1 else [f"{node.name}.{index}" for index in range(count)]
        return Instruction(node.target, convert(node.args), tuple(Result(name) for name in names), scope)
    if node.op == "call_method":
        function: Callable[..., Any] = getattr(Tensor, str(node.target))
    else:
        assert callable(node.target)
        function = node.target
    args = convert(node.args)
    both = len(args) == 2 and all(isinstance(argument, Value) for argument in args)
    if both and not node.kwargs and function in _OPERATORS:
        return Instruction(_OPERATORS[function], args, (Result(node.name),), scope)
    keywords = tuple((name, convert(value)) for name, value in node.kwargs.items())
    for name, value in keywords:
        if isinstance(value, Value):
            raise PluginError(
                "E-TRACE", scope, f"{node.target} gets a tensor as {name}=", expected="a positional argument"
            )
    return Instruction(TorchCall(function, keywords), args, (Result(node.name),), scope)
