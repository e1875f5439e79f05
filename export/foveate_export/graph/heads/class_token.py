"""Transformers that classify by a token of their own: what that token attends to.

With A[l] the attention of block l after its softmax, [heads, T, T], a row for each
query, z[c] the logit of a class, and e the row that is 1 at the class token (of
several that the head reads, the mean):

    rollout     e prod_l (mean_heads A[l] + I) / 2
                Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (ACL
                2020); rows of A sum to 1, so those of A + I to 2. It knows no class.
    relevance   e prod_l (mean_heads ReLU(dz[c] / dA[l] * A[l]) + I)
                Chefer, Gur and Wolf, "Generic Attention-model Explainability" (ICCV
                2021), the rule for self-attention.
    legrad      sum_l mean_heads,queries ReLU(ds[l, c] / dA[l])
                Bousselham et al., "LeGrad" (2024), with s[l] the logits that the head
                makes of the tokens of block l.

Products run from the last block to the first, so that a row is multiplied and never a
matrix with a matrix. Of the T cells of a map those of the tokens before the patches are
dropped. Beside these stand Grad-CAM and its kin on the patch tokens, as `Differentiated`
computes them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from foveate_export.anatomy.recording import Recording
from foveate_export.anatomy.taps import Tap
from foveate_export.errors import UnsupportedHeadError
from foveate_export.graph.forward import Forward
from foveate_export.graph.heads.base import Head, Target, TokenAttention, target_of
from foveate_export.graph.heads.differentiated import Differentiated
from foveate_export.graph.vjp.attention import Block, find_blocks, past_the_last
from foveate_export.graph.vjp.narrow import Narrow, whole
from foveate_export.graph.vjp.traced import TracedForward, TracedNetwork

ORDER = ("relevance", "rollout", "legrad", "layercam", "hirescam", "gradcam")
"""What a class-token transformer offers. The default comes first: the most faithful where
measured, see docs/export/faithfulness.md."""


class ClassToken(Head):
    """The attention of a class token, and the gradients at the patch tokens."""

    description = "a class token, differentiated operator by operator"
    attention: TokenAttention

    def __init__(
        self,
        patches: Differentiated,
        target: Target,
        blocks: Sequence[Block],
        attention: TokenAttention,
    ) -> None:
        self.module = patches.module
        self.attention = attention
        targets = {**patches.targets, **dict.fromkeys(attention.methods, target)}
        self.targets = {method: targets[method] for method in ORDER if method in targets}
        self._patches = patches
        self._blocks = tuple(blocks)

    @classmethod
    def find(cls, recording: Recording, patches: Differentiated) -> Self:
        """Find the blocks of a network, and the tokens before its patches that its head reads.

        Args:
            recording: the forward pass.
            patches: the maps that gradients give, of the same network.

        Raises:
            UnsupportedHeadError: it has no class token, or attends otherwise.
        """
        first = next((each for each in recording.maps if each.tap.layout.prefix), None)
        if first is None:
            raise UnsupportedHeadError(
                "no class token stands before the patches where these attend to each other"
            )
        layout = first.tap.layout
        image = recording.image.contiguous()
        with torch.no_grad():
            forward = patches.network([])(image)
            blocks = find_blocks(forward, layout.prefix + layout.grid[0] * layout.grid[1])
            rows = _rows_read(forward, blocks[-1])
        if not rows or rows[-1] >= layout.prefix:
            raise UnsupportedHeadError("the logits depend on the last block's patches as well")
        attention = TokenAttention(
            _methods(forward, blocks), tuple(block.path for block in blocks), rows, layout
        )
        head = cls(patches, target_of(first), blocks, attention)
        with torch.no_grad():
            head.maps(forward, torch.zeros(len(image), 1, dtype=torch.int64))
        return head

    @property
    def without_attention(self) -> Differentiated:
        """The maps that the gradients at the patch tokens give, alone."""
        return self._patches

    @property
    def selects(self) -> bool:
        """Whether a maximum stands between the first attention and the logits."""
        return self._patches.selects_after(self._blocks[0].attention)

    def network(self, taps: Sequence[Tap]) -> TracedNetwork:
        """Return the classifier as it was traced."""
        return self._patches.network(taps)

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
        """Return the share of every token in the class token, [N, K, T]: equal for all classes."""
        row = self._start
        for block in reversed(self._blocks):
            row = (row + row @ forward.weights[block.attention].mean(1)) / 2
        return row.expand(-1, classes.shape[1], -1)

    def relevance(self, forward: TracedForward, classes: Tensor) -> Tensor:
        """Return the relevance of every token, [N, K, T]."""
        nodes = [block.attention for block in self._blocks]
        gradients = forward.pull(forward.seed(classes), nodes)
        row = self._start[None]
        for node in reversed(nodes):
            weights, start = forward.weights[node], 0
            gradient = forward.at_weights(node, gradients[node])
            if isinstance(gradient, Narrow):
                weights, start, gradient = gradient.of(weights), gradient.start, gradient.part
            flow = (gradient * weights).relu().mean(2)
            row = row + row[..., start : start + flow.shape[-2]] @ flow
        return row.squeeze(2).transpose(0, 1)

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


_COMPUTE: Mapping[str, Callable[[ClassToken, TracedForward, Tensor], Tensor]] = {
    "relevance": ClassToken.relevance,
    "rollout": ClassToken.rollout,
    "legrad": ClassToken.legrad,
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
