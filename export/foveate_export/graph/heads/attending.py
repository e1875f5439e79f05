"""Transformers whose logits come of some tokens of their last block: what those attend to.

With A[l] the attention of block l after its softmax, [heads, T, T], a row for each
query, z[c] the logit of a class, and e the row that is 1 / |R| at the tokens R that the
head reads: a class token, or the patches whose mean it takes:

    rollout     e prod_l (mean_heads A[l] + I) / 2
                Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (ACL
                2020); rows of A sum to 1, so those of A + I to 2. It knows no class.
    relevance   e (prod_l (mean_heads ReLU(dz[c] / dA[l] * A[l]) + I) - I)
                Chefer, Gur and Wolf, "Generic Attention-model Explainability" (ICCV
                2021), the rule for self-attention. Without the I that is taken off at
                the end each patch of a mean would have 1 / |R| of itself; a class token's
                cell, which alone it changes there, is no part of the map.
    legrad      sum_l mean_heads,queries ReLU(ds[l, c] / dA[l])
                Bousselham et al., "LeGrad" (2024), with s[l] the logits that the head
                makes of the tokens of block l.

Products run from the last block to the first, so that a row is multiplied and never a
matrix with a matrix. Of the T cells of a map those of the tokens before the patches are
dropped. Beside these stand the maps that weigh activations, as another head computes them.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from foveate_export.anatomy.recording import Map, Recording
from foveate_export.anatomy.taps import Tap
from foveate_export.errors import UnsupportedHeadError
from foveate_export.graph.forward import Forward
from foveate_export.graph.heads.base import Head, Target, TokenAttention, target_of
from foveate_export.graph.heads.differentiated import Differentiated
from foveate_export.graph.vjp.attention import Block, find_blocks, past_the_last
from foveate_export.graph.vjp.narrow import Narrow, whole
from foveate_export.graph.vjp.traced import TracedForward, TracedNetwork


class Attending(Head):
    """The attention of the tokens that the head reads, and the maps of another head."""

    order: tuple[str, ...]
    """What such a transformer offers. The default comes first: the most faithful where
    measured, see docs/export/faithfulness.md."""

    attention: TokenAttention

    def __init__(
        self,
        patches: Head,
        traced: Differentiated,
        target: Target,
        blocks: Sequence[Block],
        attention: TokenAttention,
    ) -> None:
        self.module = patches.module
        self.held = patches.held
        self.attention = attention
        targets = {**patches.targets, **dict.fromkeys(attention.methods, target)}
        self.targets = {method: targets[method] for method in self.order if method in targets}
        self._patches = patches
        self._traced = traced
        self._blocks = tuple(blocks)

    @classmethod
    @abstractmethod
    def check(cls, rows: Sequence[int], patches: range) -> None:
        """Raise UnsupportedHeadError where the tokens that the head reads are not of this kind.

        Args:
            rows: the tokens whose attention in the last block the logits depend on.
            patches: the tokens that are patches, of all tokens the last.
        """

    @classmethod
    def among(
        cls, recording: Recording, first: Map, patches: Head, traced: Differentiated
    ) -> "Attending":
        """Find the blocks of a network, and the tokens of them that its head reads.

        Args:
            recording: the forward pass.
            first: the tokens that enter the first block.
            patches: the maps that weigh activations, of the same network.
            traced: the same network, traced.

        Raises:
            UnsupportedHeadError: it attends otherwise.
        """
        layout = first.tap.layout
        tokens = layout.prefix + layout.grid[0] * layout.grid[1]
        image = recording.image.contiguous()
        with torch.no_grad():
            forward = traced.network([])(image)
            blocks = find_blocks(forward, tokens)
            rows = _rows_read(forward, blocks[-1])
        cls.check(rows, range(layout.prefix, tokens))
        paths = tuple(block.path for block in blocks)
        attention = TokenAttention(_methods(forward, blocks), paths, rows, layout)
        head = cls(patches, traced, target_of(first), blocks, attention)
        with torch.no_grad():
            head.maps(forward, torch.zeros(len(image), 1, dtype=torch.int64))
        return head

    @property
    def without_attention(self) -> Head:
        """The maps that weigh activations, alone."""
        return self._patches

    @property
    def selects(self) -> bool:
        """Whether a maximum stands between the first attention and the logits."""
        return self._traced.selects_after(self._blocks[0].attention)

    def network(self, taps: Sequence[Tap]) -> TracedNetwork:
        """Return the classifier as it was traced."""
        return self._traced.network(taps)

    def maps(self, forward: Forward, classes: Tensor) -> dict[str, Tensor]:
        """Compute the maps of the classes asked for, by every method."""
        if not isinstance(forward, TracedForward):
            raise TypeError("these maps need a pass of the head's own network")
        layout = self.attention.layout
        found = self._patches.maps(forward, classes)
        for method in self.attention.methods:
            cells = _COMPUTE[method](self, forward, classes)[..., layout.prefix :]
            found[method] = cells.reshape(*cells.shape[:2], *layout.grid)
        return found

    def rollout(self, forward: TracedForward, classes: Tensor) -> Tensor:
        """Return the share of every token in those read, [N, K, T]: equal for all classes."""
        row = self._start
        for block in reversed(self._blocks):
            row = (row + row @ forward.weights[block.attention].mean(1)) / 2
        return row.expand(-1, classes.shape[1], -1)

    def relevance(self, forward: TracedForward, classes: Tensor) -> Tensor:
        """Return the relevance of every token, [N, K, T]."""
        nodes = [block.attention for block in self._blocks]
        gradients = forward.pull(forward.seed(classes), nodes)
        start_row = self._start[None]
        taken = torch.zeros_like(start_row)
        for node in reversed(nodes):
            weights, start = forward.weights[node], 0
            gradient = forward.at_weights(node, gradients[node])
            if isinstance(gradient, Narrow):
                weights, start, gradient = gradient.of(weights), gradient.start, gradient.part
            flow = (gradient * weights).relu().mean(2)
            taken = taken + (start_row + taken)[..., start : start + flow.shape[-2]] @ flow
        return taken.squeeze(2).transpose(0, 1)

    def legrad(self, forward: TracedForward, classes: Tensor) -> Tensor:
        """Return the sum of the blocks' gradients, [N, K, T]."""
        last = self._blocks[-1]
        sums = []
        for block in self._blocks:
            seed = forward.seed(classes)
            if block is not last and block.tokens and last.tokens:
                read = forward.with_value(last.tokens, forward.values[block.tokens])
                seed = {block.tokens: read.pull(seed, [last.tokens])[last.tokens]}
            node = block.attention
            gradient = forward.at_weights(node, forward.pull(seed, [node])[node])
            part = gradient.part if isinstance(gradient, Narrow) else gradient
            sums.append(part.relu().mean(2).sum(2) / part.shape[-1])
        return torch.stack(sums).sum(0).transpose(0, 1)

    @property
    def _start(self) -> Tensor:
        """Return e, [1, 1, T]."""
        layout, rows = self.attention.layout, self.attention.rows
        start = torch.zeros(1, 1, layout.prefix + layout.grid[0] * layout.grid[1])
        start[..., list(rows)] = 1 / len(rows)
        return start


_COMPUTE: Mapping[str, Callable[[Attending, TracedForward, Tensor], Tensor]] = {
    "relevance": Attending.relevance,
    "rollout": Attending.rollout,
    "legrad": Attending.legrad,
}


def _rows_read(forward: TracedForward, block: Block) -> tuple[int, ...]:
    """Return the tokens whose attention in the last block the logits depend on."""
    classes = torch.arange(min(forward.logits.shape[1], 4)).expand(len(forward.logits), -1)
    node = block.attention
    found = forward.pull(forward.seed(classes), [node])
    if node not in found:
        return ()
    gradient = whole(forward.at_weights(node, found[node]))
    read = (gradient != 0).any(-1).flatten(0, 2).any(0)
    return tuple(read.nonzero().flatten().tolist())


def _methods(forward: TracedForward, blocks: Sequence[Block]) -> tuple[str, ...]:
    """Return the methods whose maps these blocks give."""
    if len(blocks) > 1 and any(block.tokens is None for block in blocks):
        return ("relevance", "rollout")
    past = past_the_last(forward, blocks) if len(blocks) > 1 else []
    if past:
        raise UnsupportedHeadError(
            f"the logits depend on {past[0].path} other than by the tokens of {blocks[-1].path}"
        )
    return tuple(_COMPUTE)
