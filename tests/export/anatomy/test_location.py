"""Where a map changes when a corner of the picture is painted over: in that corner.

The tests paint real photographs in their own way, and look at the exported maps
alone. What the export believes of a network's axes is no part of it.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data
from timm.models.metaformer import (
    Attention,
    LayerNorm2dNoBias,
    LayerNormNoBias,
    MetaFormer,
    SepConv,
)
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import DenseNet, VisionTransformer
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    SwinTransformer,
    SwinTransformerBlockV2,
)

from foveate_export.anatomy.layers import default_layers, feature_layers, select_layers, taps_of
from foveate_export.anatomy.layout import NCHW, NHWC, Layout, candidates
from foveate_export.anatomy.location import CORNERS, locate, painted, score
from foveate_export.anatomy.recording import NOT_LOCATED, WITHIN_ATTENTION, Recording, record
from foveate_export.errors import UnknownLayerError, UnsupportedHeadError
from foveate_export.exporter import examine, export
from foveate_export.graph.classifier import ExplainedClassifier
from foveate_export.graph.heads import Differentiated, PooledLinear, find_head
from foveate_export.pictures import Pictures
from foveate_runtime.bundle.manifest import InputSpec
from foveate_train.classifier import Classifier

CLASSES = 5
SMALL, LARGE = 64, 128
Maps = Mapping[str, NDArray[np.float32]]


def from_timm(name: str, **arguments: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=CLASSES, **arguments)


_SWIN = {"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}
_TV_SWIN = ([4, 4], 24, [2, 2, 2, 2], [1, 2, 4, 8], [4, 4])
_VIT = {"img_size": SMALL, "patch_size": 8, "depth": 2, "embed_dim": 48}
_STAGES = {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48)}
_FORMER = {"depths": (1, 1, 1, 1), "dims": (32, 32, 64, 64), "num_classes": CLASSES}

NETWORKS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "swin": (
        LARGE,
        from_timm("swin_tiny_patch4_window7_224", img_size=LARGE, window_size=4, **_SWIN),
    ),
    "swin v2": (
        LARGE,
        from_timm("swinv2_tiny_window8_256", img_size=LARGE, window_size=4, **_SWIN),
    ),
    "torchvision swin": (LARGE, lambda: SwinTransformer(*_TV_SWIN, num_classes=CLASSES)),
    "torchvision swin v2": (
        LARGE,
        lambda: SwinTransformer(
            *_TV_SWIN,
            num_classes=CLASSES,
            block=SwinTransformerBlockV2,
            downsample_layer=PatchMergingV2,
        ),
    ),
    "vit": (SMALL, from_timm("vit_tiny_patch16_224", **_VIT)),
    "vit with registers": (SMALL, from_timm("vit_tiny_patch16_224", reg_tokens=4, **_VIT)),
    "pooled vit": (
        SMALL,
        from_timm(
            "vit_tiny_patch16_224", class_token=False, global_pool="avg", fc_norm=False, **_VIT
        ),
    ),
    "distilled deit": (SMALL, from_timm("deit_tiny_distilled_patch16_224", **_VIT)),
    "torchvision vit": (
        SMALL,
        lambda: VisionTransformer(SMALL, 8, 2, 3, 48, 96, num_classes=CLASSES),
    ),
    "mixer": (
        SMALL,
        lambda: MlpMixer(
            img_size=SMALL, patch_size=8, num_blocks=2, embed_dim=48, num_classes=CLASSES
        ),
    ),
    "convnext": (LARGE, from_timm("convnext_atto", **_STAGES)),
    "mambaout": (LARGE, from_timm("mambaout_femto", **_STAGES)),
    "davit": (
        LARGE,
        from_timm(
            "davit_tiny",
            depths=(1, 1, 1, 1),
            embed_dims=(24, 32, 48, 64),
            num_heads=(1, 2, 3, 4),
            window_size=4,
        ),
    ),
    "poolformer": (LARGE, lambda: MetaFormer(**_FORMER)),
    "caformer": (
        LARGE,
        lambda: MetaFormer(
            token_mixers=[SepConv, SepConv, Attention, Attention],
            norm_layers=[LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2,
            **_FORMER,
        ),
    ),
    "maxvit": (LARGE, from_timm("test_maxvit", img_size=LARGE)),
    "coatnet": (LARGE, from_timm("test_coatnet", img_size=LARGE)),
    "resnet": (LARGE, from_timm("resnet10t")),
    "densenet": (LARGE, lambda: DenseNet(8, (2, 2, 2, 2), 16, num_classes=CLASSES)),
    "mobilenet": (LARGE, from_timm("mobilenetv3_small_050")),
}

LAST = {
    "swin": ("norm", "nhwc"),
    "swin v2": ("norm", "nhwc"),
    "torchvision swin": ("permute", "nchw"),
    "torchvision swin v2": ("permute", "nchw"),
    "pooled vit": ("norm", "tokens(8, 8, 0)"),
    "mixer": ("norm", "tokens(8, 8, 0)"),
    "maxvit": ("norm", "nchw"),
    "coatnet": ("norm", "nchw"),
    "resnet": ("layer4", "nchw"),
    "densenet": ("features", "nchw"),
}
"""The layer of the class activation map and its layout, of the networks that have one."""


def spec_of(size: int) -> InputSpec:
    return InputSpec(
        height=size,
        width=size,
        channels=3,
        resize=size,
        interpolation="bilinear",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def photographs(size: int) -> NDArray[np.uint8]:
    """Return uint8 [3, size, size, 3]."""
    pictures = (data.astronaut(), data.chelsea(), data.coffee())
    return np.stack([np.asarray(Image.fromarray(each).resize((size, size))) for each in pictures])


def build(name: str) -> tuple[int, nn.Module]:
    size, make = NETWORKS[name]
    torch.manual_seed(0)
    module = make().eval()
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    # Some begin at zero, and maps of nothing would be anywhere.
    nn.init.normal_(last.weight)
    return size, module


def recorded(module: nn.Module, size: int) -> Recording:
    generator = torch.Generator().manual_seed(0)
    return record(module, torch.randn(2, 3, size, size, generator=generator))


def classifier_of(module: nn.Module, size: int) -> Classifier:
    return Classifier(
        name="test:network",
        arguments={},
        module=module.eval(),
        input=spec_of(size),
        labels=tuple(map(str, range(CLASSES))),
    )


def misplaced(run: Callable[[NDArray[np.uint8]], Maps], images: NDArray[np.uint8]) -> list[str]:
    """Turn one quarter of the height and width of `images` into its negative, corner by corner.

    Returns:
        The maps, [N, C, h, w], that change more in another corner, on average over
        the cells.
    """
    before = run(images)
    wrong = []
    side = images.shape[1] // 4
    ends = (slice(None, side), slice(-side, None))
    for corner, (bottom, right) in enumerate(product((0, 1), repeat=2)):
        changed = images.copy()
        changed[:, ends[bottom], ends[right]] = 255 - changed[:, ends[bottom], ends[right]]
        for name, after in run(changed).items():
            cells = np.abs(after - before[name]).sum((0, 1))
            rows, columns = (max(cells // 2, 1) for cells in cells.shape)
            corners = [
                cells[row, column].mean()
                for row, column in product(
                    (slice(None, rows), slice(-rows, None)),
                    (slice(None, columns), slice(-columns, None)),
                )
            ]
            if int(np.argmax(corners)) != corner:
                wrong.append(f"{name} in corner {corner}: {corners}")
    return wrong


@pytest.mark.parametrize("name", NETWORKS)
def test_the_painted_corner_of_every_offered_map_changes_most(name: str) -> None:
    size, module = build(name)
    recording = recorded(module, size)
    layers = feature_layers(recording)
    head = None
    if name in LAST:
        head = PooledLinear.find(recording)
        tap = head.targets["cam"].tap
        assert (str(tap), str(tap.layout)) == LAST[name]
    graph = ExplainedClassifier(module, spec_of(size), head, taps_of(layers)).eval()

    def run(images: NDArray[np.uint8]) -> Maps:
        inputs = [torch.from_numpy(images)]
        if head:
            inputs.append(torch.arange(CLASSES).expand(len(images), -1))
        with torch.no_grad():
            outputs = zip(graph.output_names, graph(*inputs), strict=True)
            # The two without a ReLU, which hides what is negative before and after.
            return {
                key: value.numpy()
                for key, value in outputs
                if key.startswith("features.") or key in {"cam.cam", "cam.hirescam"}
            }

    assert misplaced(run, photographs(size)) == []
    assert len(layers) >= 20
    default = default_layers(module, layers)
    assert default, "the stages are offered"
    assert all(layer.height == layer.width for layer in default)


def test_default_layers_of_tokens_and_of_channels_last_are_channels_first() -> None:
    size, swin = build("swin")
    layers = default_layers(swin, feature_layers(recorded(swin, size)))
    assert [(x.path, x.channels, x.height, x.width, str(x.layout)) for x in layers] == [
        ("layers.0", 24, 32, 32, "nhwc"),
        ("layers.1", 48, 16, 16, "nhwc"),
        ("layers.2", 96, 8, 8, "nhwc"),
        ("layers.3", 192, 4, 4, "nhwc"),
    ]
    for name, prefix in (("vit", 1), ("vit with registers", 5), ("distilled deit", 2)):
        size, vit = build(name)
        layers = default_layers(vit, feature_layers(recorded(vit, size)))
        assert [(x.path, x.channels, x.height, str(x.layout)) for x in layers] == [
            (f"blocks.{index}", 48, 8, f"tokens(8, 8, {prefix})") for index in range(2)
        ]


@pytest.mark.parametrize("name", ["vit", "swin", "coatnet", "distilled deit"])
def test_parts_of_attention_are_no_layers(name: str) -> None:
    size, module = build(name)
    recording = recorded(module, size)
    paths = {layer.path for layer in feature_layers(recording)}
    parts = ("qkv", "q_norm", "k_norm", "attn_drop", "softmax")
    inside = [call.path for call in recording.calls if call.path.endswith(parts)]
    assert inside
    assert not paths.intersection(inside)
    assert {recording.left_out[path] for path in inside if path in recording.left_out} == {
        WITHIN_ATTENTION
    }
    with pytest.raises(UnknownLayerError, match=r"no feature map \(part of attention"):
        select_layers([inside[0]], module, feature_layers(recording), recording.left_out)
    assert len({(layer.height, layer.width) for layer in feature_layers(recording)}) <= 6


class Unbatched(nn.Module):
    """Attention written out, with its product in a module of its own."""

    class Product(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left @ right

    class Attend(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
            self.product = Unbatched.Product()
            self.output = nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            shares = self.product(self.query(x), self.key(x).transpose(1, 2)).softmax(2)
            return x + self.output(self.product(shares, self.value(x)))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.attend = Unbatched.Attend(16)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.attend(self.stem(x).flatten(2).transpose(1, 2))
        return self.fc(tokens.mean(1))


def test_a_product_in_a_module_of_its_own_is_attention_too() -> None:
    torch.manual_seed(0)
    recording = recorded(Unbatched().eval(), SMALL)
    assert [(x.path, str(x.layout)) for x in feature_layers(recording)] == [
        ("stem", "nchw"),
        ("attend", "tokens(8, 8, 0)"),
    ]
    assert {path for path, reason in recording.left_out.items() if reason == WITHIN_ATTENTION} == {
        f"attend.{part}" for part in ("query", "key", "value", "product", "output")
    }


class ChannelsLast(nn.Module):
    """Keeps its maps as [N, h, w, C] from the stem on, and turns them back and forth once.

    `channels` is also the number of cells of the last map, 16, so that no shape
    tells which axis is which.
    """

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 4, 4)
        self.norm = nn.LayerNorm(channels)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.down = nn.Conv2d(channels, channels, 2, 2)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.ReLU())
        self.back = nn.Linear(2 * channels, channels)
        self.fc = nn.Linear(channels, CLASSES)

    def maps(self, x: Tensor) -> Tensor:
        last = self.norm(self.stem(x).permute(0, 2, 3, 1))
        last = last + self.mix(last.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        last = self.down(last.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return last + self.back(self.mlp(last))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.back(self.mlp(self.maps(x))).mean((1, 2)))


class Gated(ChannelsLast):
    """The same with a head whose gradient differs from cell to cell."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(functional.relu(self.back(self.mlp(self.maps(x)))).mean((1, 2)))


def test_the_layout_of_each_layer_of_a_network_that_turns_its_axes() -> None:
    torch.manual_seed(0)
    recording = recorded(ChannelsLast().eval(), 32)
    assert {x.path: (str(x.layout), x.channels, x.height) for x in feature_layers(recording)} == {
        "stem": ("nchw", 16, 8),
        "norm": ("nhwc", 16, 8),
        "mix": ("nchw", 16, 8),
        "down": ("nchw", 16, 4),
    }
    assert recording.left_out.keys() == {"mlp", "mlp.0", "mlp.1", "back"}, "run twice"


def autograd_maps(
    module: nn.Module, layer: str, view: Callable[[Tensor], Tensor], image: Tensor
) -> dict[str, Tensor]:
    """Return the maps of class 3 by PyTorch alone, with the layer's axes turned by `view`."""
    kept: list[Tensor] = []
    handle = module.get_submodule(layer).register_forward_hook(lambda *call: kept.append(call[2]))
    logits = module(image)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[:, 3].sum(), kept[-1])
    a, g = view(kept[-1].detach()), view(gradient)
    return {
        "gradcam": (g.mean((2, 3), keepdim=True) * a).sum(1).clamp(min=0),
        "hirescam": (g * a).sum(1),
        "layercam": (g.clamp(min=0) * a).sum(1).clamp(min=0),
    }


class TokenHead(nn.Module):
    """Patch tokens behind two others, and a head whose gradient differs from token to token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 8, 8)
        self.prefix = nn.Parameter(torch.randn(1, 2, 24))
        self.block = nn.Linear(24, 24)
        self.hidden = nn.Linear(24, 32)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.block(torch.cat([self.prefix.expand(tokens.shape[0], -1, -1), tokens], 1))
        return self.fc(functional.relu(self.hidden(tokens)).mean(1))


def without_prefix(tokens: Tensor) -> Tensor:
    return tokens[:, 2:].reshape(len(tokens), 8, 8, 24).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("module", "layer", "layout", "view"),
    [
        (Gated(), "norm", NHWC, lambda x: x.permute(0, 3, 1, 2)),
        (Gated(), "mix", NCHW, lambda x: x),
        (TokenHead(), "block", Layout("tokens", (8, 8), 2), without_prefix),
    ],
)
def test_gradient_maps_equal_pytorchs_in_every_layout(
    module: nn.Module, layer: str, layout: Layout, view: Callable[[Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3)
    recording = recorded(module.eval(), SMALL)
    head = Differentiated.at_layer(recording, layer)
    assert head.targets["gradcam"].tap.layout == layout
    image = torch.randn(3, 3, SMALL, SMALL)
    with torch.no_grad():
        got = head.maps(head.network([])(image), torch.full((3, 1), 3))
    for method, expected in autograd_maps(module, layer, view, image).items():
        assert expected.abs().max() > 0
        torch.testing.assert_close(got[method][:, 0], expected, rtol=1e-4, atol=1e-6)


CLASS_TOKEN = {"vit": ("blocks.1.norm1", "tokens(8, 8, 1)")}
ATTENTION = {"relevance", "rollout", "legrad"}

EXPORTED = {
    "swin": ["layers.1", "layers.3"],
    "vit": ["blocks.0", "blocks.1"],
    "pooled vit": ["blocks.0", "blocks.1"],
    "mixer": ["blocks.0", "blocks.1"],
    "coatnet": ["stages.1", "stages.3"],
}


@pytest.mark.parametrize("name", EXPORTED)
def test_the_exported_graph_gives_maps_channels_first(
    name: str, tmp_path: Path, open_runner
) -> None:
    layers = EXPORTED[name]
    size, module = build(name)
    images = photographs(size)
    exported = export(
        classifier_of(module, size),
        repository=tmp_path,
        name=name.replace(" ", "-"),
        pictures=Pictures(images, "photographs"),
        layers=layers,
    )
    manifest = exported.manifest
    maps = [f"features.{layer}" for layer in layers]
    # The maps of attention are of the tokens that come into the first block.
    weighing = [cam for cam in manifest.cams if cam.method not in ATTENTION]
    assert (len(weighing) < len(manifest.cams)) == ("vit" in name)
    of_layers = {(cam.layer, cam.layout) for cam in weighing}
    if name in LAST:
        assert of_layers == {LAST[name]}
        maps += ["cam.cam", "cam.hirescam"]
    elif manifest.cams:
        assert of_layers == {CLASS_TOKEN[name]}
        maps += ["cam.hirescam"]
    class_ids = np.tile(np.arange(CLASSES), (len(images), 1))
    with open_runner(exported) as runner:

        def run(pictures: NDArray[np.uint8]) -> Maps:
            inputs = {"image": pictures} | ({"class_ids": class_ids} if manifest.cams else {})
            return runner.run(inputs, maps)

        assert misplaced(run, images) == []
        got = run(images)
    for feature in manifest.features:
        shape = (len(images), feature.channels, feature.height, feature.width)
        assert got[f"features.{feature.layer}"].shape == shape


def test_a_channels_last_bundle_holds_the_means_of_its_channels(
    tmp_path: Path, open_runner
) -> None:
    """What `foveate batch --embeddings` averages is the mean over rows and columns."""
    torch.manual_seed(0)
    module = ChannelsLast(24).eval()
    images = photographs(32)
    exported = export(
        classifier_of(module, 32),
        repository=tmp_path,
        name="last",
        pictures=Pictures(images, "photographs"),
        layers=["norm"],
    )
    (feature,) = exported.manifest.features
    assert (feature.channels, feature.height, feature.width, feature.layout) == (24, 8, 8, "nhwc")
    mean, std = torch.tensor(spec_of(32).mean), torch.tensor(spec_of(32).std)
    with torch.no_grad():
        pixels = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
        expected = module.norm(module.stem(pixels).permute(0, 2, 3, 1)).mean((1, 2))
    with open_runner(exported) as runner:
        got = runner.run({"image": images}, ["features.norm"])["features.norm"]
    np.testing.assert_allclose(got.mean((2, 3)), expected.numpy(), atol=1e-5)


def test_a_class_token_is_explained_by_the_patches_that_the_last_block_attends_to() -> None:
    size, vit = build("vit")
    head = find_head(recorded(vit, size))
    assert {str(target.tap.layout) for target in head.targets.values()} == {"tokens(8, 8, 1)"}
    patches = head.without_attention.targets
    assert {target.tap.path for target in patches.values()} == {"blocks.1.norm1"}
    assert {str(head.targets[method].tap) for method in ("rollout", "relevance", "legrad")} == {
        "pos_drop (input)"
    }
    assert "cam" not in head.targets


class Turned(nn.Module):
    """Lies on its side: its rows are the picture's columns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x.transpose(2, 3)).relu()).mean((2, 3)))


class Columns(nn.Module):
    """Puts its tokens, row by row, into one column, and patches of them side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.column = nn.Conv2d(16, 16, 1)
        self.patches = nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stem(x)
        column = self.column(maps.flatten(2).unsqueeze(3))
        patches = self.patches(functional.unfold(maps, 2, stride=2).unflatten(1, (16, 4)))
        return self.fc(column.mean((2, 3)) + patches.mean((2, 3)))


def test_axes_that_are_not_the_pictures_are_left_out() -> None:
    torch.manual_seed(0)
    recording = recorded(Turned().eval(), 32)
    assert feature_layers(recording) == []
    assert recording.left_out == dict.fromkeys(("stem", "body"), NOT_LOCATED)
    with pytest.raises(UnsupportedHeadError, match="not the spatial mean of any"):
        find_head(recording)

    recording = recorded(Columns().eval(), 32)
    assert [layer.path for layer in feature_layers(recording)] == ["stem"]
    assert recording.left_out == dict.fromkeys(("column", "patches"), NOT_LOCATED)


class Mixing(nn.Module):
    """Convolutions down to 2 x 2 cells, each of which sees all of the picture."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 16, 16, 16, 16)
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(before, after, 3, 2, padding=1), nn.ReLU())
                for before, after in pairwise(widths)
            )
        )
        self.last = nn.Conv2d(16, 16, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.last(self.body(x))).flatten(1))


def test_a_convolution_to_a_few_cells_is_a_map_though_each_sees_everything() -> None:
    torch.manual_seed(0)
    recording = recorded(Mixing().eval(), 64)
    assert str(PooledLinear.find(recording).targets["cam"].tap) == "last"


def test_examine_lists_what_was_left_out() -> None:
    size, vit = build("vit")
    anatomy = examine(classifier_of(vit, size))
    assert anatomy.head is not None
    assert anatomy.left_out["blocks.0.attn.q_norm"] == WITHIN_ATTENTION
    assert {str(layer.layout) for layer in anatomy.layers} == {
        "nchw",
        "tokens(8, 8, 0)",
        "tokens(8, 8, 1)",
    }


def test_the_paint_covers_a_quarter_of_one_corner() -> None:
    pictures = np.zeros((2, 3, 16, 24), np.float32)
    for (bottom, right), changed in zip(CORNERS, painted(pictures), strict=True):
        rows, columns = np.nonzero((changed != 0).any((0, 1)))
        assert (rows.min(), rows.max()) == ((12, 15) if bottom else (0, 3))
        assert (columns.min(), columns.max()) == ((18, 23) if right else (0, 5))
    assert not pictures.any()


def changes_at(
    *cells: tuple[int, int], size: tuple[int, int] = (5, 5)
) -> list[NDArray[np.float64]]:
    found = [np.full(size, 0.1) for _ in cells]
    for change, cell in zip(found, cells, strict=True):
        change[cell] = 10
    return found


def test_the_score_compares_corners() -> None:
    right = changes_at((0, 0), (0, 4), (4, 0), (4, 4))
    assert score(right) > 10
    turned = changes_at((0, 0), (4, 0), (0, 4), (4, 4))
    assert score(turned) < 0.1
    rows = changes_at((0, 0), (0, 0), (4, 0), (4, 0))
    assert score(rows) < 0.1
    assert score([np.ones((4, 4))] * 4) == pytest.approx(1)
    assert score([np.zeros((4, 4))] * 4) == pytest.approx(1)
    assert score([np.full((4, 4), np.nan)] * 4) == 0
    one_row = changes_at((0, 0), (0, 4), (0, 0), (0, 4), size=(1, 5))
    assert score(one_row) > 10


def test_a_cell_that_always_changes_most_is_no_place() -> None:
    changes = changes_at((0, 0), (0, 4), (4, 0), (4, 4))
    for change in changes:
        change[0, 4] = 100
    assert score(changes) < 0.2


def test_convolved_maps_are_told_by_what_they_are_where_no_paint_can_tell() -> None:
    before = {"map": np.ones((1, 2, 8, 8)), "few": np.ones((1, 2, 2, 2))}
    choices = {key: [NCHW] for key in before}

    def found(*changes: dict[str, float | NDArray[np.float64]]) -> set[str]:
        after = [{key: before[key] + each[key] for key in before} for each in changes]
        assert locate(before, after, choices) == {}
        return set(locate(before, after, choices, before))

    assert found(*[{"map": 1e-6, "few": 1}] * 4) == {"map", "few"}
    assert found(*[{"map": 1, "few": 1}] * 4) == {"few"}, "the larger one ought to tell"
    elsewhere = np.zeros((1, 2, 8, 8))
    elsewhere[..., 7] = 1
    assert found(*[{"map": elsewhere, "few": 1}] * 4) == set()


def test_an_activation_that_is_missing_in_a_pass_is_not_located() -> None:
    before = {"map": np.zeros((1, 2, 4, 4))}
    after = [{"map": np.ones((1, 2, 4, 4))}, {}, {"map": np.ones((1, 2, 5, 5))}, {}]
    assert locate(before, after, {"map": [NCHW, NHWC]}) == {}


def test_layouts_that_a_shape_may_have() -> None:
    assert candidates((2, 8, 7, 7), (224, 224)) == [NCHW, NHWC]
    assert candidates((2, 8, 196, 1), (224, 224)) == [NHWC], "no map has a single column"
    assert candidates((2, 197, 64), (224, 224)) == [Layout("tokens", (14, 14), 1)]
    assert candidates((2, 130, 64), (128, 256)) == [Layout("tokens", (8, 16), 2)]
    assert candidates((2, 77, 64), (128, 256), {(7, 11)}) == [
        Layout("tokens", (7, 11), 0),
        Layout("tokens", (6, 12), 5),
    ]
    assert candidates((2, 64), (224, 224)) == []


def test_a_layout_is_written_and_read() -> None:
    tokens = torch.arange(2 * 7 * 3).reshape(2, 7, 3)
    layout = Layout("tokens", (2, 3), 1)
    maps = layout.to_nchw(tokens)
    assert maps.shape == (2, 3, 2, 3)
    assert maps[1, 2, 1, 0] == tokens[1, 1 + 3, 2]
    assert np.array_equal(layout.to_nchw(tokens.numpy()), maps.numpy())
    assert [str(each) for each in (NCHW, NHWC, layout)] == ["nchw", "nhwc", "tokens(2, 3, 1)"]
