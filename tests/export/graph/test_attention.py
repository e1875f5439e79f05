"""Maps of tokens' attention against autograd, written here with hooks on the softmax."""

import copy

import pytest
import torch
from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.xcit import Xcit
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionViT

from foveate_export.anatomy.pixels import normalise
from foveate_export.default_pictures import for_classifier
from foveate_export.exporter import examine
from foveate_export.graph.classifier import ExplainedClassifier
from foveate_export.graph.heads import ClassToken, Differentiated, MeanOfTokens
from foveate_export.proof.comparison import relative_error

CLASSES = [[0, 3, 9, 4, 1], [5, 5, 1, 0, 2]]
GRID = 4
SMALL = {
    "img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10,
    "embed_dim": 24, "depth": 3, "num_heads": 3,
}  # fmt: skip
NETWORKS = {
    "vit": lambda: VisionTransformer(**SMALL),
    "one block": lambda: VisionTransformer(**{**SMALL, "depth": 1}),
    "registers, norms of queries and keys, layer scale": lambda: VisionTransformer(
        **SMALL, reg_tokens=3, qk_norm=True, init_values=0.5
    ),
    "distilled deit": lambda: VisionTransformerDistilled(**SMALL),
    "beit": lambda: Beit(
        **SMALL, use_rel_pos_bias=True, use_abs_pos_emb=False, global_pool="token"
    ),
    "eva": lambda: Eva(**SMALL, use_rot_pos_emb=True, global_pool="token", swiglu_mlp=True),
    "mean of tokens": lambda: VisionTransformer(**SMALL, global_pool="avg", class_token=False),
    "mean of tokens behind a norm": lambda: VisionTransformer(
        **SMALL, global_pool="avg", fc_norm=False, class_token=False
    ),
    "beit, mean of patches without the class token": lambda: Beit(
        **SMALL, use_rel_pos_bias=True, use_abs_pos_emb=False, global_pool="avg"
    ),
}
ATTENTION = {"relevance", "rollout", "legrad"}


def spread(module: nn.Module) -> nn.Module:
    """Give weights a size at which classes and tokens differ, which they hardly do at first."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, 0, 0.3, generator=generator)
    return module.eval()


def oracle(module: nn.Module, rows: list[int], prefix: int, pixels: Tensor) -> dict[str, Tensor]:
    """Rollout, relevance and LeGrad of one of timm's networks, class by class, as matrices."""
    module = copy.deepcopy(module)
    matrices: list[Tensor] = []
    tokens: list[Tensor] = []
    for block in module.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda _, taken: matrices.append(taken[0]))
        block.register_forward_hook(lambda _, taken, output: tokens.append(output))
    logits = module(pixels.requires_grad_())
    read = [module.forward_head(module.norm(each)) for each in tokens]
    one = torch.eye(matrices[0].shape[-1])
    found: dict[str, list[Tensor]] = {method: [] for method in ATTENTION}
    for k in range(len(CLASSES[0])):
        rolled = relevance = one.expand(len(pixels), -1, -1)
        chosen = sum(logits[n, CLASSES[n][k]] for n in range(len(pixels)))
        legrad = torch.zeros(len(pixels), len(one))
        for matrix, scores in zip(matrices, read, strict=True):
            rolled = 0.5 * (matrix.mean(1) + one) @ rolled
            (gradient,) = torch.autograd.grad(chosen, matrix, retain_graph=True)
            relevance = relevance + (gradient * matrix).clamp(min=0).mean(1) @ relevance
            score = sum(scores[n, CLASSES[n][k]] for n in range(len(pixels)))
            (gradient,) = torch.autograd.grad(score, matrix, retain_graph=True)
            legrad = legrad + gradient.clamp(min=0).mean((1, 2))
        found["rollout"].append(rolled[:, rows].mean(1))
        found["relevance"].append((relevance - one)[:, rows].mean(1))
        found["legrad"].append(legrad)
    return {
        method: torch.stack(each, 1)[..., prefix:].unflatten(-1, (GRID, GRID)).detach()
        for method, each in found.items()
    }


@pytest.mark.parametrize(
    ("name", "rows", "prefix"),
    [
        ("vit", [0], 1),
        ("one block", [0], 1),
        ("registers, norms of queries and keys, layer scale", [0], 4),
        ("distilled deit", [0, 1], 2),
        ("beit", [0], 1),
        ("eva", [0], 1),
        ("mean of tokens", [*range(16)], 0),
        ("mean of tokens behind a norm", [*range(16)], 0),
        ("beit, mean of patches without the class token", [*range(1, 17)], 1),
    ],
)
def test_maps_of_attention_equal_autograd(name, rows, prefix, digit_classifier) -> None:
    module = spread(NETWORKS[name]())
    classifier = digit_classifier(module)
    anatomy = examine(classifier)
    head = anatomy.head
    pooled = "mean of" in name
    assert isinstance(head, MeanOfTokens if pooled else ClassToken)
    further = {"cam"} if pooled else set()
    assert set(head.methods) == {*ATTENTION, "gradcam", "hirescam", "layercam", *further}
    assert head.methods[0] == "relevance"
    assert anatomy.note is None

    images = for_classifier(classifier).images[:2]
    graph = ExplainedClassifier(module, classifier.input, head, []).eval()
    with torch.no_grad():
        outputs = graph(torch.from_numpy(images), torch.tensor(CLASSES))
    got = dict(zip(graph.output_names, outputs, strict=True))
    expected = oracle(module, rows, prefix, normalise(images, classifier.input))
    for method, maps in expected.items():
        assert maps.abs().max() > 0
        assert relative_error(got[f"cam.{method}"].numpy(), maps.numpy(), (2, 3)) < 1e-4, method
    # Rollout knows no class, and the others do.
    for method in ATTENTION:
        first, second = got[f"cam.{method}"][0, 0], got[f"cam.{method}"][0, 1]
        assert torch.equal(first, second) == (method == "rollout")


def test_attention_of_pytorchs_own_words(digit_classifier) -> None:
    class Grey(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = TorchvisionViT(28, 7, 2, 3, 24, 48, num_classes=10)

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x.expand(-1, 3, -1, -1))

    module = spread(Grey())
    classifier = digit_classifier(module)
    head = examine(classifier).head
    assert isinstance(head, ClassToken)

    matrices: list[Tensor] = []
    weighed = copy.deepcopy(module)
    for layer in weighed.network.encoder.layers:
        attention = layer.self_attention
        layer.self_attention.forward = lambda x, *_, attention=attention, **__: (
            nn.MultiheadAttention.forward(attention, x, x, x, average_attn_weights=False)
        )
        attention.register_forward_hook(lambda _, taken, output: matrices.append(output[1]))
    images = for_classifier(classifier).images[:2]
    with torch.no_grad():
        weighed(normalise(images, classifier.input))
    one = torch.eye(GRID * GRID + 1)
    rolled = 0.5 * (matrices[1].mean(1) + one) @ (0.5 * (matrices[0].mean(1) + one))
    graph = ExplainedClassifier(module, classifier.input, head, []).eval()
    with torch.no_grad():
        outputs = graph(torch.from_numpy(images), torch.tensor(CLASSES))
    got = dict(zip(graph.output_names, outputs, strict=True))["cam.rollout"][:, 0]
    expected = rolled[:, 0, 1:].reshape(2, GRID, GRID)
    assert torch.allclose(got, expected, atol=1e-6)


class Mixed(nn.Module):
    """Attention whose heads are mixed after the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(24, 72)
        self.mix = nn.Linear(3, 3)

    def forward(self, x: Tensor, **_: object) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 3, 8)).permute(2, 0, 3, 1, 4).unbind()
        weights = (q @ k.mT).softmax(-1)
        mixed = self.mix(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return (mixed @ v).transpose(1, 2).flatten(2)


def with_mixed_heads() -> nn.Module:
    network = VisionTransformer(**SMALL)
    network.blocks[1].attn = Mixed()
    return network


class ReadsTwoBlocks(VisionTransformer):
    """The head reads the class tokens of the last two blocks."""

    def forward(self, x: Tensor) -> Tensor:
        x = self._pos_embed(self.patch_embed(x))
        tokens = []
        for block in self.blocks:
            x = block(x)
            tokens.append(x[:, 0])
        return self.head(tokens[-1] + tokens[-2])


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Cait(**{**SMALL, "embed_dim": 24}),
         "the attention in blocks.0.attn is 3 x 16 x 16 and not heads x 17 x 17 tokens"),
        (lambda: Xcit(**{**SMALL, "patch_size": 8, "img_size": 32}),
         "the attention in blocks.0.attn is 3 x 8 x 8 and not heads x 17 x 17 tokens"),
        (with_mixed_heads, "the attention in blocks.1.attn is changed before it weighs the values"),
        (lambda: ReadsTwoBlocks(**SMALL),
         "the logits depend on blocks.0 other than by the tokens of blocks.2"),
        (lambda: VisionTransformer(**SMALL, global_pool="map", class_token=False),
         "no class token stands before the patches where these attend to each other"),
    ],
)  # fmt: skip
def test_what_has_no_maps_of_attention_says_why_in_one_sentence(
    make, why, digit_classifier
) -> None:
    module = spread(make())
    classifier = digit_classifier(module)
    if isinstance(module, Xcit):
        spec = classifier.input.changed(height=32, width=32, resize=32)
        classifier = type(classifier)(**{**vars(classifier), "input": spec})
    anatomy = examine(classifier)
    assert isinstance(anatomy.head, Differentiated)
    assert anatomy.note == f"no maps of a class token's attention: {why}"


class Unseen(nn.Module):
    """Attention whose softmax torch computes by other functions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(24, 72)

    def forward(self, x: Tensor, **_: object) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 3, 8)).permute(2, 0, 3, 1, 4).unbind()
        weights = torch._softmax(q @ k.mT, -1, False)
        return (weights @ v).transpose(1, 2).flatten(2)


def test_attention_that_cannot_be_compared_is_not_offered(digit_classifier) -> None:
    module = VisionTransformer(**SMALL)
    module.blocks[1].attn = Unseen()
    anatomy = examine(digit_classifier(spread(module)))
    assert isinstance(anatomy.head, Differentiated)
    assert anatomy.note == (
        "no maps of the tokens' attention: torch computes 2 matrices of 17 x 17 tokens "
        "in a softmax, for 3 blocks"
    )
