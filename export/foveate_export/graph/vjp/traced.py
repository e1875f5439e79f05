"""Traces a network to a list of operators and pulls gradients back through it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._dynamo.exc import TorchDynamoException
from torch.export import ExportedProgram

from foveate_export.anatomy.layout import NCHW
from foveate_export.anatomy.taps import Tap, as_maps, tapped
from foveate_export.errors import UnsupportedHeadError
from foveate_export.graph.forward import Forward
from foveate_export.graph.vjp.narrow import Narrow, pull, total, whole
from foveate_export.graph.vjp.operation import ROOT, Operation, bind, layer_of, operator_name
from foveate_export.graph.vjp.rules import (
    RULES,
    SELECTING,
    attention_weights,
    is_plain_attention,
    preserves_sums,
    unsupported,
)

_FUSED = "scaled_dot_product_attention"

ATTENDING = frozenset({_FUSED, "softmax", "_softmax"})
"""The operators that can be the attention of one token to others."""

_DECOMPOSITIONS = 4
"""How often what a decomposition made is taken apart again."""


@dataclass(frozen=True)
class TracedForward(Forward):
    """A forward pass through which gradients can be pulled back.

    Attributes:
        graph: the operators, in the order in which they ran.
        values: what each node of the graph returned.
        nodes: the node of every tap.
        end: the node of the logits.
        weights: what each attention multiplies the values with, [N, heads, T, T], by
            the node of its softmax, or of the operator that includes the softmax.
    """

    graph: fx.Graph
    values: Mapping[fx.Node, Any]
    nodes: Mapping[Tap, fx.Node]
    end: fx.Node
    weights: Mapping[fx.Node, Tensor] = field(default_factory=dict)

    def parameter(self, path: str) -> Tensor:
        """Return the parameter at `path` of the network that was traced."""
        return super().parameter(ROOT + path)

    def gradient(self, tap: Tap, classes: Tensor) -> Tensor:
        """Return the gradient of the logits of `classes` at a tensor of the pass.

        Args:
            tap: a tensor on the way to the logits.
            classes: class indices, int64 [N, K].

        Returns:
            float [K, N, C, h, w]: for each class asked for, as a rule returns it.

        Raises:
            UnsupportedHeadError: an operator between the two has no rule, or
                the logits do not depend on the tensor.
        """
        gradient = self._gradient(classes, self.nodes[tap])
        if gradient is None:
            raise UnsupportedHeadError(f"the logits do not depend on {tap}")
        maps = tap.layout.to_nchw(gradient.flatten(0, 1))
        return maps.reshape(*gradient.shape[:2], *maps.shape[1:])

    def mean_gradient(self, tap: Tap, classes: Tensor) -> Tensor | None:
        """Return the mean of `gradient` over space, where it is to be had for less.

        Where only pooling stands between the tensor and a linear layer that
        takes it flattened, the sums of that layer's weights over space do for
        the weights: 8 MB and not 411 MB of VGG16's. The weights are constants,
        so an engine sums them once, when it loads the graph.

        Returns:
            float [K, N, C]; None where anything else lies between.
        """
        flattened = self._flattened_linear(self.nodes[tap]) if tap.layout == NCHW else None
        if flattened is None:
            return None
        linear, channels = flattened
        weight = self._operation(linear)["weight"]
        cells = self.tensors[tap].shape[2] * self.tensors[tap].shape[3]
        means: Tensor = weight.reshape(weight.shape[0], channels, -1).sum(2) / cells
        if linear is self.end:
            return means[classes.T]
        gradient = self._gradient(classes, linear)
        return None if gradient is None else gradient @ means

    def with_value(self, node: fx.Node, value: Tensor) -> "TracedForward":
        """Return the pass as it would be with another value of `node`."""
        values = {**self.values, node: value}
        changed = {node}
        leading = leading_to(self.end)
        for later in self.graph.nodes:
            if later in leading and later is not node:
                if changed.isdisjoint(later.all_input_nodes):
                    continue
                changed.add(later)
                args, kwargs = fx.map_arg((later.args, later.kwargs), values.__getitem__)
                values[later] = later.target(*args, **kwargs)
        return replace(self, logits=values[self.end], values=values)

    def seed(self, classes: Tensor) -> dict[fx.Node, Any]:
        """Return the gradient of the logits asked for at the last operator with a use for it."""
        operation = self._operation(self.end)
        if operation.name == "linear":
            # Rows of the weights, in place of their product with ones and zeros.
            (below,) = self._inputs(self.end, "input")
            return {below: operation["weight"][classes.T]}
        index = torch.arange(self.logits.shape[1])
        return {self.end: (classes.T[:, :, None] == index).to(self.logits.dtype)}

    def _gradient(self, classes: Tensor, to: fx.Node) -> Tensor | None:
        """Return the gradient at `to`, or None where the logits do not depend on it."""
        found: Tensor | None = whole(self.pull(self.seed(classes), [to]).get(to))
        return found

    def pull(self, seed: Mapping[fx.Node, Any], to: Collection[fx.Node]) -> dict[fx.Node, Any]:
        """Pull the cotangents `seed` back to the nodes `to`; none where nothing depends on one.

        Raises:
            UnsupportedHeadError: an operator between them has no rule.
        """
        cotangents = dict(seed)
        found: dict[fx.Node, Any] = {}
        missing = set(to)
        depending = self._depending_on(to)
        for node in reversed(self.graph.nodes):
            cotangent = cotangents.pop(node, None)
            if node in missing:
                missing.discard(node)
                if cotangent is not None:
                    found[node] = cotangent
                if not missing:
                    break
            if cotangent is None or node not in depending:
                continue
            needed = depending.intersection(node.all_input_nodes)
            if not needed:
                continue
            for name, value in self._pulled(node, cotangent, depending).items():
                for source, part in self._sources(node, name, value):
                    if source in depending:
                        _accumulate(cotangents, source, part)
                        needed.discard(source)
            if needed:
                why = "there is no rule for one of its inputs"
                raise unsupported(self._operation(node), why)
        return found

    def at_weights(self, node: fx.Node, cotangent: Any) -> Any:
        """Return the cotangent of the weights of an attention from that of its node."""
        if operator_name(node) != _FUSED:
            return cotangent
        value = self._operation(node)["value"]
        if isinstance(cotangent, Narrow) and cotangent.axis == -2:
            return replace(cotangent, part=cotangent.part @ value.mT)
        return whole(cotangent) @ value.mT

    def _pulled(
        self, node: fx.Node, cotangent: Any, depending: Collection[fx.Node]
    ) -> Mapping[str, Any]:
        if operator_name(node) == "getitem":
            return {"0": {node.args[1]: cotangent}}
        wanted = [
            name
            for name, given in bind(node).items()
            if isinstance(given, fx.Node) and given in depending
        ]
        operation = replace(self._operation(node), wanted=wanted)
        if operation.name not in RULES:
            raise unsupported(operation, "there is no rule for this operator")
        return pull(operation, cotangent)

    def _sources(self, node: fx.Node, argument: str, value: Any) -> list[tuple[fx.Node, Any]]:
        """Pair the nodes that gave an argument with their cotangents."""
        nodes = bind(node)[argument]
        if isinstance(nodes, fx.Node):
            return [(nodes, value)]
        return [
            (each, part)
            for each, part in zip(nodes, value, strict=True)
            if isinstance(each, fx.Node)
        ]

    def _depending_on(self, start: Collection[fx.Node]) -> set[fx.Node]:
        """Return `start` and the nodes with gradients whose values depend on one of them."""
        found = set(start)
        for node in self.graph.nodes:
            if not found.isdisjoint(node.all_input_nodes) and _has_gradient(self.values.get(node)):
                found.add(node)
        return found

    def _inputs(self, node: fx.Node, argument: str) -> list[fx.Node]:
        return [source for source, _ in self._sources(node, argument, None)]

    def _operation(self, node: fx.Node) -> Operation:
        arguments = fx.map_arg(bind(node), lambda source: self.values[source])
        return Operation(operator_name(node), layer_of(node), arguments, self.values[node])

    def _flattened_linear(self, node: fx.Node) -> tuple[fx.Node, int] | None:
        """Return the linear layer that takes the map of `node`, pooled and flattened.

        And the channels of the map; None where anything else lies between.
        """
        reached = self._depending_on([node]) & leading_to(self.end)
        while True:
            users = [user for user in node.users if user in reached]
            if len(users) != 1:
                return None
            value = self.values[node]
            (node,) = users
            operation = self._operation(node)
            if operation.name in {"view", "_unsafe_view", "reshape", "flatten"} and value.ndim == 4:
                break
            if not preserves_sums(operation):
                return None
        (linear, *others) = [user for user in node.users if user in reached]
        if others or operator_name(linear) != "linear" or self.values[node].ndim != 2:
            return None
        return linear, value.shape[1]


class TracedNetwork(nn.Module):
    """A network as a flat list of ATen operators that change nothing in place.

    Args:
        graph: takes pixels; its operators call nothing but ATen.
        end: the node of the logits.
        nodes: the node of every tap.
    """

    def __init__(self, graph: fx.GraphModule, end: fx.Node, nodes: Mapping[Tap, fx.Node]) -> None:
        super().__init__()
        self._graph = graph
        self._end = end
        self._nodes = nodes

    @property
    def taps(self) -> Iterable[Tap]:
        """The tensors that a pass gives."""
        return self._nodes

    @property
    def attends(self) -> bool:
        """Whether anything in the network may be attention of some tokens to others."""
        return any(
            operator_name(node) in ATTENDING and node.meta["val"].ndim > 2
            for node in self._graph.graph.nodes
            if node.op == "call_function"
        )

    def selects(self, tap: Tap) -> bool:
        """Return whether a maximum is taken of what depends on the tensor at `tap`."""
        return self.selects_after(self._nodes[tap])

    def selects_after(self, start: fx.Node) -> bool:
        """Return whether a maximum is taken of what depends on the node `start`."""
        reached = {start}
        for node in self._graph.graph.nodes:
            if not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
                if node.op == "call_function" and operator_name(node) in SELECTING:
                    return True
        return False

    def forward(self, pixels: Tensor) -> TracedForward:
        """Classify `pixels`, normalised, float [N, C, H, W]."""
        interpreter = _Interpreter(self._graph, garbage_collect_values=False)
        interpreter.run(pixels)
        values = interpreter.env
        return TracedForward(
            logits=values[self._end],
            tensors=as_maps({tap: values[node] for tap, node in self._nodes.items()}),
            module=self._graph,
            graph=self._graph.graph,
            values=values,
            nodes=self._nodes,
            end=self._end,
            weights=interpreter.weights,
        )


class _Interpreter(fx.Interpreter):
    """Runs a traced network, and keeps the weights of every attention.

    Fused attention keeps its weights to itself. It runs as its parts here, which ONNX
    has in its place anyway, so that weights that a map needs are computed once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weights: dict[fx.Node, Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        if node.op != "call_function" or operator_name(node) not in ATTENDING:
            return super().run_node(node)
        if operator_name(node) != _FUSED:
            self.weights[node] = super().run_node(node)
            return self.weights[node]
        arguments = fx.map_arg(bind(node), self.env.__getitem__)
        operation = Operation(_FUSED, layer_of(node), arguments, None)
        if not is_plain_attention(operation):
            return super().run_node(node)
        self.weights[node], _ = attention_weights(operation)
        return self.weights[node] @ operation["value"]


def trace(
    module: nn.Module, image: Tensor, taps: Iterable[Tap], start: Iterable[Tap]
) -> TracedNetwork:
    """Trace `module`, in evaluation mode, with any number of pictures.

    An operator that has no rule is made of others by PyTorch's own decomposition,
    where it stands behind `start`, and where there is one.

    Args:
        module: takes float [N, C, H, W] and returns logits [N, classes].
        image: an example of at least two pictures, contiguous.
        taps: the tensors that the traced network is to give.
        start: those of `taps` that gradients may be asked for.

    Raises:
        UnsupportedHeadError: the network cannot be traced.
    """
    taps = tuple(dict.fromkeys(taps))
    batch = ({0: torch.export.Dim.DYNAMIC},)
    try:
        with torch.no_grad():
            program = torch.export.export(_Flat(module, taps), (image,), dynamic_shapes=batch)
        # With an empty table, it only makes the operators pure functions.
        program = program.run_decompositions({})
        outputs = dict(zip((None, *taps), program.graph_signature.user_outputs, strict=True))
        exported = _decomposed(program, {outputs[tap] for tap in start}).module()
    except (TorchDynamoException, RuntimeError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UnsupportedHeadError(f"the network cannot be traced: {first}") from error
    for node in exported.graph.find_nodes(op="call_module", target="_guards_fn"):
        exported.graph.erase_node(node)
    # What attention gives as its parts may lie in memory in another order than a view takes.
    for node in exported.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        node.target = torch.ops.aten.reshape.default
    # The exporter's own module refuses eval(); a plain one holds the same parameters.
    graph = fx.GraphModule(exported, exported.graph)
    # The outputs are what `_Flat` returns: a tuple of tensors.
    end, *nodes = cast("Sequence[fx.Node]", graph.graph.output_node().args[0])
    return TracedNetwork(graph, end, dict(zip(taps, nodes, strict=True)))


def _decomposed(program: ExportedProgram, start: Collection[str]) -> ExportedProgram:
    """Take operators without a rule apart, where they depend on the nodes called `start`."""
    known = torch.export.default_decompositions()
    for _ in range(_DECOMPOSITIONS):
        reached = {node for node in program.graph.nodes if node.name in start}
        table = {}
        for node in program.graph.nodes:
            if reached.isdisjoint(node.all_input_nodes):
                continue
            reached.add(node)
            # No gradient passes a size, and each round traces the whole network again.
            passed = _has_gradient(node.meta.get("val"))
            if passed and operator_name(node) not in RULES and node.target in known:
                table[node.target] = known[node.target]
        if not table:
            break
        program = program.run_decompositions(table)
    return program


class _Flat(nn.Module):
    """Returns the logits and the tensors at the taps as one tuple, as a tracer wants them."""

    def __init__(self, module: nn.Module, taps: tuple[Tap, ...]) -> None:
        super().__init__()
        self.module = module
        self._taps = taps

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        with tapped(self.module, self._taps) as tensors:
            logits: Tensor = self.module(pixels)
        return (logits, *(tensors[tap] for tap in self._taps))


def _has_gradient(value: object) -> bool:
    """Whether a node's value is one that a gradient can pass; sizes, indices and masks are not."""
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return isinstance(value, tuple | list)


def _accumulate(cotangents: dict[fx.Node, Any], node: fx.Node, value: Any) -> None:
    """Add to a node's cotangent; where the node returns several tensors, to that of one."""
    before = cotangents.get(node)
    if isinstance(value, dict):
        cotangents[node] = before or {}
        for index, part in value.items():
            _accumulate(cotangents[node], index, part)
    else:
        cotangents[node] = value if before is None else total(before, value)


def leading_to(end: fx.Node) -> set[fx.Node]:
    """Return `end` and the nodes that its value depends on."""
    found = {end}
    pending = [end]
    while pending:
        for source in pending.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                pending.append(source)
    return found
