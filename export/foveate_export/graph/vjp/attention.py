"""The attention of a network in blocks: its matrices, and the tokens between the blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from foveate_export.errors import UnsupportedHeadError
from foveate_export.graph.vjp.operation import bind, layer_of, layers_around, operator_name
from foveate_export.graph.vjp.traced import ATTENDING, TracedForward, leading_to

_PASSING = frozenset({"dropout", "clone", "alias", "contiguous", "to", "_to_copy"})
"""What weights may pass on their way to the values, and stay as they are."""


@dataclass(frozen=True)
class Block:
    """One block of a transformer.

    Attributes:
        path: of the module; "" where no module holds this attention and no other.
        attention: the node whose weights `TracedForward.weights` has.
        tokens: the node of the tokens that the block returns, [N, T, C]; None where
            it returns something else.
    """

    path: str
    attention: fx.Node
    tokens: fx.Node | None


def find_blocks(forward: TracedForward, tokens: int) -> list[Block]:
    """Return the blocks of a network all of whose attention is among the same tokens.

    Args:
        forward: a pass of the network.
        tokens: how many tokens there are, T.

    Raises:
        UnsupportedHeadError: some attention is among other things, or is changed on
            its way to the values; says which.
    """
    leading = leading_to(forward.end)
    nodes = [
        node
        for node in forward.graph.nodes
        if node in leading and node.op == "call_function" and _attends(node, forward)
    ]
    if not nodes:
        raise UnsupportedHeadError("no tokens attend to each other")
    for node in nodes:
        _check(node, forward, tokens)
    return [_block(node, nodes, forward, tokens) for node in nodes]


def _attends(node: fx.Node, forward: TracedForward) -> bool:
    if operator_name(node) not in ATTENDING:
        return False
    # A softmax of vectors makes probabilities.
    return operator_name(node) not in {"softmax", "_softmax"} or forward.values[node].ndim > 2


def _check(node: fx.Node, forward: TracedForward, tokens: int) -> None:
    weights = forward.weights.get(node)
    place = f"the attention in {layer_of(node) or 'the network itself'}"
    if weights is None:
        raise UnsupportedHeadError(f"{place} is causal, or its queries share keys")
    if weights.ndim != 4 or tuple(weights.shape[2:]) != (tokens, tokens):
        sizes = " x ".join(map(str, weights.shape[1:]))
        raise UnsupportedHeadError(f"{place} is {sizes} and not heads x {tokens} x {tokens} tokens")
    parts = operator_name(node) in {"softmax", "_softmax"}
    if parts and (int(bind(node)["dim"]) % 4 != 3 or not _reaches_values(node)):
        raise UnsupportedHeadError(f"{place} is changed before it weighs the values")


def _reaches_values(node: fx.Node) -> bool:
    """Whether all that is done with weights is to multiply values with them."""
    for user in node.users:
        if operator_name(user) in _PASSING:
            if not _reaches_values(user):
                return False
        elif operator_name(user) != "matmul" or user.args[0] is not node:
            return False
    return bool(node.users)


def _block(node: fx.Node, nodes: Sequence[fx.Node], forward: TracedForward, tokens: int) -> Block:
    others = {path for other in nodes if other is not node for path in layers_around(other)}
    own = [path for path in layers_around(node) if path not in others]
    if not own:
        return Block("", node, None)
    path = own[-1]
    inside = [each for each in forward.graph.nodes if path in layers_around(each)]
    value = forward.values.get(inside[-1])
    returns = isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] == tokens
    return Block(path, node, inside[-1] if returns else None)


def past_the_last(forward: TracedForward, blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks that the logits depend on other than by the tokens of the last one."""
    around = {forward.end}
    for node in reversed(forward.graph.nodes):
        if node in around and node is not blocks[-1].tokens:
            around.update(node.all_input_nodes)
    return [block for block in blocks if block.attention in around]
