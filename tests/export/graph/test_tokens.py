"""Maps of transformers against autograd, written here from the tokens of the last block."""

from pathlib import Path

import pytest
import torch
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import VisionTransformer as TorchvisionViT

from foveate_export.anatomy.pixels import normalise
from foveate_export.default_pictures import for_classifier
from foveate_export.exporter import examine, export
from foveate_export.graph.classifier import ExplainedClassifier
from foveate_export.graph.heads import ClassToken, Differentiated, MeanOfTokens
from foveate_export.graph.vjp.rules import RULES
from foveate_export.proof.comparison import relative_error

CLASSES = [[0, 3, 9], [5, 5, 1]]
GRID = 4
SMALL = {
    "img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10,
    "embed_dim": 24, "depth": 2, "num_heads": 3,
}  # fmt: skip


class ByHand(nn.Module):
    """A transformer in PyTorch's own words, with a class token and queries for it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 24, 7, 7)
        self.token = nn.Parameter(torch.randn(1, 1, 24))
        self.position = nn.Parameter(torch.randn(1, 17, 24))
        self.norm1 = nn.LayerNorm(24)
        self.attention = nn.MultiheadAttention(24, 3, batch_first=True)
        self.norm2 = nn.LayerNorm(24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.position
        normal = self.norm1(tokens)
        tokens = tokens + self.attention(normal, normal, normal, need_weights=False)[0]
        return self.head(self.norm2(tokens)[:, 0])


class Grey(nn.Module):
    """torchvision's transformer, whose encoder adds positions to what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.network = TorchvisionViT(28, 7, 2, 3, 24, 48, num_classes=10)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.expand(-1, 3, -1, -1))


def oracle(module: nn.Module, layer: str, prefix: int, pixels: Tensor) -> dict[str, Tensor]:
    """Grad-CAM and its kin on the patch tokens that `layer` returns, class by class."""
    kept: list[Tensor] = []
    path, _, taken = layer.partition(" ")
    handle = module.get_submodule(path).register_forward_hook(
        lambda _, inputs, output: kept.append(inputs[0] if taken else output)
    )
    logits = module(pixels.requires_grad_())
    handle.remove()
    found: dict[str, list[Tensor]] = {"gradcam": [], "hirescam": [], "layercam": []}
    for k in range(3):
        score = sum(logits[n, CLASSES[n][k]] for n in range(len(pixels)))
        (gradient,) = torch.autograd.grad(score, kept[0], retain_graph=True)
        tokens, gradient = kept[0][:, prefix:].detach(), gradient[:, prefix:]
        weights = gradient.mean(1, keepdim=True)
        found["gradcam"].append((weights * tokens).sum(2).clamp(min=0))
        found["hirescam"].append((gradient * tokens).sum(2))
        found["layercam"].append((gradient.clamp(min=0) * tokens).sum(2).clamp(min=0))
    return {
        method: torch.stack(maps, 1).reshape(len(pixels), 3, GRID, GRID)
        for method, maps in found.items()
    }


@pytest.mark.parametrize(
    ("make", "layer", "prefix", "kind"),
    [
        (ByHand, "norm1", 1, ClassToken),
        (lambda: VisionTransformer(**SMALL), "blocks.1.norm1", 1, ClassToken),
        (Grey, "network.encoder.layers.encoder_layer_1.ln_1", 1, ClassToken),
        (lambda: VisionTransformer(**SMALL, reg_tokens=3, qk_norm=True, init_values=0.5),
         "blocks.1.norm1", 4, ClassToken),
        (lambda: VisionTransformerDistilled(**SMALL), "blocks.1.norm1", 2, ClassToken),
        (lambda: Beit(**SMALL, use_rel_pos_bias=True, use_abs_pos_emb=False,
                      global_pool="token"),
         "blocks.1.norm1", 1, ClassToken),
        (lambda: Eva(**SMALL, use_rot_pos_emb=True, global_pool="token", swiglu_mlp=True),
         "blocks.1.norm1", 1, ClassToken),
        (lambda: VisionTransformer(**SMALL, global_pool="map", class_token=False),
         "attn_pool (input)", 0, Differentiated),
        (lambda: VisionTransformer(**SMALL, global_pool="avg", fc_norm=False, class_token=False),
         "norm", 0, MeanOfTokens),
        (lambda: VisionTransformer(**SMALL, global_pool="avg"), "blocks", 1, MeanOfTokens),
    ],
)  # fmt: skip
def test_maps_of_patch_tokens_equal_autograd(make, layer, prefix, kind, digit_classifier) -> None:
    torch.manual_seed(0)
    module = make()
    # As initialised, many weights are so small that the classes hardly differ.
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, 0, 0.3)
    classifier = digit_classifier(module)
    head = examine(classifier).head
    assert isinstance(head, kind)
    target = head.targets["gradcam"]
    assert (str(target.tap), target.tap.layout.prefix) == (layer, prefix)
    assert (target.height, target.width) == (GRID, GRID)

    images = for_classifier(classifier).images[:2]
    graph = ExplainedClassifier(module, classifier.input, head, []).eval()
    with torch.no_grad():
        outputs = graph(torch.from_numpy(images), torch.tensor(CLASSES))
    got = dict(zip(graph.output_names, outputs, strict=True))
    for method, maps in oracle(module, layer, prefix, normalise(images, classifier.input)).items():
        assert maps.abs().max() > 0
        assert relative_error(got[f"cam.{method}"].numpy(), maps.numpy(), (2, 3)) < 1e-4, method


def test_the_last_block_is_pulled_back_for_the_class_token_alone(
    digit_classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = VisionTransformer(**SMALL)
    head = examine(digit_classifier(module)).head
    assert head is not None
    seen: dict[str, list[int]] = {}
    for name in ("gelu", "scaled_dot_product_attention", "layer_norm"):
        monkeypatch.setitem(
            RULES,
            name,
            lambda operation, cotangent, rule=RULES[name]: (
                seen.setdefault(operation.name, []).append(cotangent.shape[-2])
                or rule(operation, cotangent)
            ),
        )
    with torch.no_grad():
        forward = head.network([])(torch.randn(2, 1, 28, 28))
        head.without_attention.maps(forward, torch.tensor(CLASSES))
    assert seen == {"layer_norm": [1, 1], "gelu": [1], "scaled_dot_product_attention": [1]}


def test_attention_with_a_bias_is_written_as_onnx(digit_classifier, tmp_path: Path) -> None:
    # Of position, as in BEiT and MaxViT, whose heads need no trace of their own.
    torch.manual_seed(0)
    module = Beit(**SMALL, use_rel_pos_bias=True, use_abs_pos_emb=False, global_pool="avg")
    classifier = digit_classifier(module)
    pictures = for_classifier(classifier)
    exported = export(classifier, repository=tmp_path, name="beit", pictures=pictures)
    assert "cam" in exported.manifest.variant("fp32").parity.cams


class Windows(nn.Module):
    """Attention in windows of tokens, [N, windows, heads, T, C], as in Twins, and without heads."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 24, 7, 7)
        self.qkv = nn.Linear(24, 72)
        self.bias = nn.Parameter(torch.randn(3, 4, 4))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.patches(x).permute(0, 2, 3, 1)
        windows = cells.reshape(-1, 2, 2, 2, 2, 24).transpose(2, 3).reshape(-1, 4, 4, 24)
        q, k, v = self.qkv(windows).unflatten(-1, (3, 3, 8)).permute(3, 0, 1, 4, 2, 5).unbind()
        taken = functional.scaled_dot_product_attention(q, k, v, self.bias, dropout_p=0.0)
        tokens = taken.transpose(2, 3).reshape(-1, 16, 24)
        tokens = functional.scaled_dot_product_attention(tokens, tokens, value=tokens)
        folded = tokens.reshape(-1, 2, 2, 2, 2, 24).transpose(2, 3).reshape(cells.shape)
        return self.head((cells + folded).permute(0, 3, 1, 2).mean((2, 3)))


def test_attention_of_five_axes_or_three_is_written_as_onnx(
    digit_classifier, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    classifier = digit_classifier(Windows().eval())
    pictures = for_classifier(classifier)
    exported = export(classifier, repository=tmp_path, name="windows", pictures=pictures)
    assert exported.manifest.variant("fp32").parity.logits_max_abs < 1e-5


class PassedBy(nn.Module):
    """Its last convolution reaches the logits by nothing but a factor of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 7, 7)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.stem(x).relu()
        return self.head((cells.square() + 0 * self.last(cells)).flatten(1))


def test_a_layer_whose_every_gradient_is_zero_is_passed_over(digit_classifier) -> None:
    torch.manual_seed(0)
    head = examine(digit_classifier(PassedBy().eval())).head
    assert isinstance(head, Differentiated)
    assert str(head.targets["gradcam"].tap) != "last"
