"""The classifier as it is exported: pixels in, logits, maps and features out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foveate_export.anatomy.taps import Tap
from foveate_export.graph.forward import Forward, HookedNetwork
from foveate_export.graph.heads import Head
from foveate_runtime.bundle.manifest import (
    CAM_PREFIX,
    CLASS_IDS_INPUT,
    FEATURES_PREFIX,
    IMAGE_INPUT,
    LOGITS_OUTPUT,
    MOST_RANKS,
    InputSpec,
)


class ExplainedClassifier(nn.Module):
    """A classifier with its normalisation before it and its explanations beside it.

    Args:
        module: takes normalised float [N, C, H, W], returns logits [N, classes].
        spec: the normalisation, mean and standard deviation on the scale 0 to 1.
        head: computes the class activation maps; None where there are none, and
            then there is no input `class_ids` either.
        layers: the outputs of modules that become feature maps.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, module: nn.Module, spec: InputSpec, head: Head | None, layers: Sequence[Tap]
    ) -> None:
        super().__init__()
        self._head = head
        self._layers = tuple(layers)
        # A head may need the classifier in another form.
        self.network = head.network(self._layers) if head else HookedNetwork(module, self._layers)
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        self.register_buffer("scale", (1 / (255 * std)).repeat(spec.width))
        self.register_buffer("shift", (-mean / std).repeat(spec.width))

    @property
    def input_names(self) -> list[str]:
        """The graph's inputs, in the order of `forward`."""
        return [IMAGE_INPUT, CLASS_IDS_INPUT] if self._head else [IMAGE_INPUT]

    @property
    def output_names(self) -> list[str]:
        """The graph's outputs, in the order of what `forward` returns."""
        methods = self._head.methods if self._head else ()
        return [
            LOGITS_OUTPUT,
            *(CAM_PREFIX + method for method in methods),
            *(FEATURES_PREFIX + tap.path for tap in self._layers),
        ]

    def forward(self, image: Tensor, class_ids: Tensor | None = None) -> tuple[Tensor, ...]:
        """Classify and explain.

        Args:
            image: uint8 [N, H, W, C].
            class_ids: int64 [N, K]; -1 means the best class, -2 the second, and
                so on. Below the number of classes, and at least minus
                that or minus `MOST_RANKS`.

        Returns:
            The outputs of `output_names`, as the graph contract describes them.
        """
        # Along whole rows, because engines are slow with factors of 3 values. Cast
        # first: TensorRT does not transpose uint8.
        rows = image.float().flatten(2) * self.scale + self.shift
        # Made contiguous, or the tracer writes the pooling as steps over memory.
        pixels = rows.reshape(image.shape).permute(0, 3, 1, 2).contiguous()
        inside: Forward = self.network(pixels)
        maps: list[Tensor] = []
        if self._head is not None and class_ids is not None:
            by_method = self._head.maps(inside, resolve_ranks(inside.logits, class_ids))
            maps = [by_method[method] for method in self._head.methods]
        return (inside.logits, *maps, *(inside.tensors[tap] for tap in self._layers))


def resolve_ranks(logits: Tensor, class_ids: Tensor) -> Tensor:
    """Replace negative class ids, -1 for the best class, by the class of that rank.

    Equal logits rank by class index in ONNX, as the smaller index does in a
    stable descending sort. int64 [N, K] in and out.
    """
    ranked = logits.topk(min(logits.shape[1], MOST_RANKS), dim=1).indices
    ranks = (-1 - class_ids).clamp(min=0)
    return torch.where(class_ids < 0, ranked.gather(1, ranks), class_ids)
