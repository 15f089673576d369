"""A classifier as a list of ATen operators that is run, and walked back, by rules.

The network is traced once, forward (``torch.export``, batch dynamic). :class:`Network` runs that trace by the rules of
:mod:`prism_fast.teachers.decompositions` and goes back through their pullbacks. No autograd takes part, so a module
that holds one can be exported, and it is as exact in fp64 as its rules.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prism_fast.energy.terms import Outputs
from prism_fast.errors import UserError
from prism_fast.teachers.decompositions import RULES, Pullback
from prism_fast.teachers.taps import BATCH_NORM

_FOLDED = ("aten::_native_batch_norm_legit_no_training", "aten::batch_norm")
_MADE_OF_SIZES = tuple(f"aten::new_{what}" for what in ("zeros", "ones", "full"))
_CURE = "take the eager or compiled back-end, or another teacher"


@dataclass(frozen=True, kw_only=True)
class Forward:
    """A network as a list of ATen operators.

    Attributes:
        graph: inputs are the weights, then the images; one output, logits [B, K].
        weights: tensors of the inputs that are weights, by the input's name; those that were folded are in fp64.
        active: the nodes that depend on the images: those that need a rule.
        size: (height, width) of the images.
        taps: nodes whose values can be read and pulled back too, by their names.
    """

    graph: torch.fx.Graph
    weights: Mapping[str, Tensor]
    active: frozenset[torch.fx.Node]
    size: tuple[int, int]
    taps: Mapping[str, torch.fx.Node]


def trace(model: torch.nn.Module, size: tuple[int, int], taps: Collection[str] = ()) -> Forward:
    """The operators of ``model`` for images [B, 3, *size] with any B, its batch normalisations folded.

    A batch normalisation right behind a convolution, and nowhere else, becomes part of it (Jacob et al. 2018, arXiv
    1712.05877, sec. 3.2), in fp64.

    Args:
        model: in eval mode, on the CPU, in fp32; maps images to logits [B, K]. It is not changed.
        size: (height, width).
        taps: inputs of batch-norm layers that are to be read, named as in :mod:`prism_fast.teachers.taps`; these layers
            stay what they are.

    Raises:
        UserError: the network cannot be traced with a free batch size, has an operator without a rule, or a tap is not
            the input of just one operator.
    """
    example = torch.zeros(2, 3, *size, dtype=next((p.dtype for p in model.parameters()), torch.float32))
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    try:
        with torch.no_grad():
            program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},), strict=False)
            program = program.run_decompositions({})
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{type(model).__name__} cannot be traced for export ({reason}): {_CURE}") from error
    weights = _weights(program)
    graph = program.graph_module.graph
    _fold_constants(graph, weights, example)
    layers = _batch_norms(graph, taps)
    _fold_batch_norm(graph, weights, frozenset(layers.values()))
    graph.eliminate_dead_code()
    images = [node for node in graph.nodes if node.op == "placeholder" and node.name not in weights]
    if len(images) != 1:
        raise UserError(f"{type(model).__name__} takes {len(images)} inputs, expected images alone: {_CURE}")
    active = _reached(graph, images[0])
    for node in active:
        _check_rule(node, type(model).__name__)
    used = {node.name for node in graph.nodes if node.op == "placeholder" and (node.users or node in images)}
    return Forward(
        graph=graph,
        weights={name: value for name, value in weights.items() if name in used},
        active=active,
        size=size,
        taps={name: layer.all_input_nodes[0] for name, layer in layers.items()},
    )


def _fold_constants(graph: torch.fx.Graph, weights: dict[str, Tensor], example: Tensor) -> None:
    """What is made of sizes alone (masks of shifted windows, say) becomes a weight: it depends on no image."""
    values: dict[torch.fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if operator_name(node) in _MADE_OF_SIZES and not any(_is_size(each) for each in node.all_input_nodes):
            values[node] = node.target(example, *node.args[1:], **node.kwargs)
        elif node.all_input_nodes and all(each in values for each in node.all_input_nodes):
            values[node] = node.target(*_known(node.args, values), **_known(node.kwargs, values))
    for node, value in values.items():
        if isinstance(value, Tensor) and any(user not in values for user in node.users):
            with graph.inserting_before(next(iter(graph.nodes))):
                constant = graph.placeholder(f"constant_{node.name}")
            weights[constant.name] = value
            node.replace_all_uses_with(constant, delete_user_cb=lambda user: user not in values)


def _known(argument: Any, values: Mapping[torch.fx.Node, Any]) -> Any:
    """An operator's argument with the values of its nodes."""
    return torch.fx.node.map_arg(argument, values.__getitem__)


def _batch_norms(graph: torch.fx.Graph, taps: Collection[str]) -> dict[str, torch.fx.Node]:
    """The operators of the layers whose inputs are tapped."""
    found: dict[str, list[torch.fx.Node]] = {tap: [] for tap in taps}
    for node in graph.nodes:
        if node.op == "call_function" and operator_name(node) in _FOLDED:
            *_, (path, _) = node.meta["nn_module_stack"].values()
            found.get(BATCH_NORM + path, []).append(node)
    for tap, nodes in found.items():
        if len(nodes) != 1:
            raise UserError(f"layer {tap} runs {len(nodes)} times in a forward: it has no single input to compare")
    return {tap: node for tap, (node,) in found.items()}


def _weights(program: torch.export.ExportedProgram) -> dict[str, Tensor]:
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    found = {name: program.state_dict[target] for name, target in names.items() if target in program.state_dict}
    others = {**names, **signature.inputs_to_lifted_tensor_constants}
    found |= {name: program.constants[target] for name, target in others.items() if name not in found}
    return {name: value.detach() for name, value in found.items()}


def operator_name(node: torch.fx.Node) -> str:
    """``aten::conv2d`` and its like, without the overload."""
    schema = getattr(node.target, "_schema", None)
    return schema.name if schema is not None else getattr(node.target, "__name__", str(node.target))


def _reached(graph: torch.fx.Graph, images: torch.fx.Node) -> frozenset[torch.fx.Node]:
    active = {images}
    for node in graph.nodes:
        if node.op == "call_function" and not _is_size(node) and any(arg in active for arg in node.all_input_nodes):
            active.add(node)
    return frozenset(active - {images}) | {images}


def _is_size(node: torch.fx.Node) -> bool:
    """A number, such as the batch's size, and what is computed from it."""
    return isinstance(node.meta.get("val"), int | float | torch.SymInt | torch.SymFloat)


def _check_rule(node: torch.fx.Node, model: str) -> None:
    if node.op != "call_function" or node.target is operator.getitem or operator_name(node) in RULES:
        return
    raise UserError(f"{model} uses {operator_name(node)}, which has no gradient rule for export: {_CURE}")


def _fold_batch_norm(graph: torch.fx.Graph, weights: dict[str, Tensor], kept: frozenset[torch.fx.Node]) -> None:
    for node in list(graph.nodes):
        if node.op != "call_function" or operator_name(node) not in _FOLDED or node in kept:
            continue
        source, scale, shift, mean, var, *rest = node.args
        eps = rest[-1] if operator_name(node) == _FOLDED[0] else rest[2]
        if operator_name(source) != "aten::conv2d" or len(source.users) != 1 or shift is None:
            continue
        kernel, bias = source.args[1], source.args[2] if len(source.args) > 2 else None
        if any(len(value.users) != 1 or value.name not in weights for value in (kernel, shift)):
            continue  # shared with another layer, or computed from other weights
        slope = torch.rsqrt(weights[var.name].double() + eps)
        slope = slope if scale is None else slope * weights[scale.name].double()
        start = 0.0 if bias is None else weights[bias.name].double()
        folded = (start - weights[mean.name].double()) * slope + weights[shift.name].double()
        weights[kernel.name] = weights[kernel.name].double() * slope.view(-1, 1, 1, 1)
        weights[shift.name] = folded
        source.args = (source.args[0], kernel, shift, *source.args[3:])
        results = [user for user in node.users if user.target is operator.getitem] or [node]
        for result in results:
            result.replace_all_uses_with(source)
            graph.erase_node(result)
        if results != [node]:
            graph.erase_node(node)


class Network(torch.nn.Module):
    """A :class:`Forward` that can be run and pulled back; its weights are buffers, in ``dtype``."""

    def __init__(self, forward: Forward, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self._forward = forward
        self._buffer_of: dict[str, str] = {}
        for name, value in forward.weights.items():
            self._buffer_of[name] = f"w_{name.removeprefix('p_').removeprefix('b_')}"
            self.register_buffer(self._buffer_of[name], value.to(dtype) if value.is_floating_point() else value)

    def pulled(self, images: Tensor) -> tuple[Outputs, Callable[[Outputs], Tensor]]:
        """Logits [B, K] and taps, and a function from their cotangents to the images'."""
        run = _Run(self._forward, {name: self.get_buffer(own) for name, own in self._buffer_of.items()}, images)
        return run.outputs, run.pull_back


def _part(node: torch.fx.Node) -> tuple[torch.fx.Node, int]:
    """What a ``getitem`` takes, and from what."""
    whole, index = node.args
    if not isinstance(whole, torch.fx.Node) or not isinstance(index, int):
        raise TypeError(f"{node.format_node()} is no part of a result")
    return whole, index


class _Run:
    """One pass forward, and what is needed to go back."""

    def __init__(self, forward: Forward, weights: Mapping[str, Tensor], images: Tensor) -> None:
        self._active = forward.active
        self._values: dict[torch.fx.Node, Any] = {}
        self._tape: list[tuple[torch.fx.Node, Pullback]] = []
        self._parts: dict[torch.fx.Node, Sequence[Pullback]] = {}
        for node in forward.graph.nodes:
            if node.op == "output":
                (self._result,) = node.args[0]
            elif node.op == "placeholder":
                self._values[node] = weights.get(node.name, images)
                if node.name not in weights:
                    self._source = node
            elif node in self._active:
                self._differentiably(node)
            else:
                self._values[node] = node.target(*self._value(node.args), **self._value(node.kwargs))
        self._taps = forward.taps
        taps = {name: self._values[node] for name, node in forward.taps.items()}
        self.outputs = Outputs(logits=self._values[self._result], taps=taps)

    def _value(self, argument: Any) -> Any:
        return _known(argument, self._values)

    def _differentiably(self, node: torch.fx.Node) -> None:
        if node.target is operator.getitem:
            whole, index = _part(node)
            if whole in self._parts:
                self._values[node] = self._values[whole][index]
                self._tape.append((node, self._parts[whole][index]))
            else:  # the first of several results of an operator, the only one that is used
                self._values[node] = self._values[whole]
                self._tape.append((node, lambda g: (g,)))
            return
        self._values[node], pull = RULES[operator_name(node)](*self._value(node.args), **self._value(node.kwargs))
        if isinstance(pull, tuple):
            self._parts[node] = pull
        else:
            self._tape.append((node, pull))

    def pull_back(self, cotangents: Outputs) -> Tensor:
        """d⟨cotangents, outputs⟩/d images; taps without a cotangent count nothing."""
        given = {self._result: cotangents.logits}
        for name, cotangent in cotangents.taps.items():
            node = self._taps[name]
            given[node] = given[node] + cotangent if node in given else cotangent
        for node, pull in reversed(self._tape):
            if node not in given:
                continue
            for argument, share in zip(_sources(node), pull(given.pop(node)), strict=False):
                if share is not None and argument in self._active:
                    given[argument] = given[argument] + share if argument in given else share
        return given[self._source]


def _sources(node: torch.fx.Node) -> Iterator[Any]:
    """The arguments that a pullback's cotangents belong to: through ``getitem`` those of the whole."""
    if node.target is operator.getitem and isinstance(node.args[0], torch.fx.Node):
        whole = node.args[0]
        yield from (whole.args[0],) if _in_parts(whole) else (whole,)
        return
    for argument in node.args:
        yield from (
            argument
            if isinstance(argument, list | tuple) and node.target is torch.ops.aten.cat.default
            else (argument,)
        )


def _in_parts(node: torch.fx.Node) -> bool:
    return operator_name(node) in ("aten::unbind", "aten::split", "aten::split_with_sizes", "aten::chunk")
