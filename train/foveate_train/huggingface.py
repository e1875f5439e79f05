"""Classifiers in the layouts of Hugging Face: a folder with a config.json, or a name of its hub.

timm's folders say their input and labels. Of transformers' the input is found from
what the image processor does to pictures, so that no kind of processor has to be
known here. No code of a folder is run.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import timm
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn

from foveate_runtime.bundle.manifest import InputSpec, faults
from foveate_train.classifier import Classifier
from foveate_train.data.preprocess import preprocess
from foveate_train.errors import ArgumentsError, MissingPackageError, WeightsError
from foveate_train.sources import timm as timm_source

PREFIXES = ("hf-hub:", "hf_hub:")
CONFIG = "config.json"
_FILES = ("*.json", "*.safetensors", "pytorch_model.bin")

_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic")
"""The interpolations by their numbers in Pillow, which image processors keep."""

_PICTURES = ((300, 400), (640, 480))
"""Rows and columns of the pictures that a processor is tried on: like no input.

Of one size alone a processor that does not resize looks like one that does.
"""

_ALIKE = 0.01
"""The mean difference, on the scale from 0 to 1, of a picture that two ways resize and crop."""


def is_folder(folder: Path) -> bool:
    """Whether a folder holds a classifier in a layout of Hugging Face."""
    return (folder / CONFIG).is_file()


def fetch(name: str) -> Path:
    """Download what `hf-hub:OWNER/NAME` holds, unless it is in the hub's cache.

    Raises:
        WeightsError: it cannot be had.
    """
    repository = name.partition(":")[2]
    advice = "download the repository elsewhere and give its folder"
    try:
        try:
            found = huggingface_hub.snapshot_download(
                repository, allow_patterns=list(_FILES), local_files_only=True
            )
            if is_folder(Path(found)):
                return Path(found)
        except huggingface_hub.errors.LocalEntryNotFoundError:
            pass
        timm_source.reach(huggingface_hub.constants.ENDPOINT)
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise WeightsError(f"{name}: cannot be downloaded ({said}); {advice}") from error


def load(folder: Path, name: str, spec: InputSpec | None = None) -> Classifier:
    """Build the classifier of a folder, with its weights.

    Args:
        folder: holds config.json and the weights.
        name: what to call the classifier.
        spec: its input; None for what the folder says.

    Raises:
        MissingPackageError: transformers is not installed, and is needed.
        ArgumentsError: the folder does not say its input in a way that is known here.
        WeightsError: it has no weights, or they do not fit.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder / CONFIG}: cannot be read ({error})") from error
    if isinstance(config, Mapping) and "architecture" in config:
        return _of_timm(folder, name, spec)
    if isinstance(config, Mapping) and "model_type" in config:
        return _of_transformers(folder, name, spec)
    raise WeightsError(
        f"{folder / CONFIG}: names neither an architecture of timm nor a model_type of transformers"
    )


def _of_timm(folder: Path, name: str, spec: InputSpec | None) -> Classifier:
    try:
        module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (RuntimeError, AssertionError, TypeError, KeyError, OSError) as error:
        raise WeightsError(f"{name}: {_first_line(error)}") from error
    configuration = module.pretrained_cfg
    classifier = timm_source.describe(name, module, {}, spec)
    labels = configuration.get("label_names")
    if labels and len(labels) == len(classifier.labels):
        described = configuration.get("label_descriptions") or {}
        classifier = replace(classifier, labels=tuple(described.get(n, n) for n in labels))
    return replace(classifier, assumptions={"weights": f"those of {folder.name}, read by timm"})


def _of_transformers(folder: Path, name: str, spec: InputSpec | None) -> Classifier:
    try:
        transformers: Any = import_module("transformers")
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f'{name} is one of transformers: pip install "foveate-train[transformers]"'
        ) from error
    arguments = {"local_files_only": True, "trust_remote_code": False}
    try:
        module, info = transformers.AutoModelForImageClassification.from_pretrained(
            folder, output_loading_info=True, **arguments
        )
    except Exception as error:
        # Configurations of any age fail in many ways, which share no class.
        raise WeightsError(f"{name}: {_first_line(error)}") from error
    missing = sorted(map(str, (*info["missing_keys"], *info["mismatched_keys"])))
    if missing:
        raise WeightsError(
            f"{name}: its file has no fitting values for {', '.join(missing[:3])}; it is no "
            "classifier that was trained"
        )
    said = {"weights": f"those of {folder.name}, read by transformers"}
    if spec is None:
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(folder, **arguments)
        except Exception as error:
            raise ArgumentsError(
                f"{name} says no input ({_first_line(error)}); --input-spec says it"
            ) from error
        spec = input_of(processor, name)
        said["input"] = f"found from what its {type(processor).__name__} does"
        if _swaps_colours(processor):
            module.register_forward_pre_hook(_blue_first)
            said["input"] += ", which turns red, green, blue around"
    labels = tuple(str(module.config.id2label[index]) for index in range(module.config.num_labels))
    return Classifier(
        name=name, arguments={}, module=module.eval(), input=spec, labels=labels, assumptions=said
    )


def _blue_first(_: nn.Module, pixels: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Turn the colours of pictures around, as a hook before the network's forward pass."""
    return (pixels[0].flip(1), *pixels[1:])


def input_of(processor: Any, name: str) -> InputSpec:
    """Return the input specification that does to pictures what an image processor does.

    Mean and standard deviation are told from a black and a white picture, and the
    fit from a picture whose colours change steadily along its sides.

    Raises:
        ArgumentsError: no specification does the same.
    """
    kind = type(processor).__name__
    mean, std = _normalisation(processor, name)
    pictures = [_sloped(*size) for size in _PICTURES]
    wanted = [_processed(processor, picture, name) for picture in pictures]
    channels, height, width = wanted[0].shape
    scale = np.asarray(std)[:, None, None]
    closest: tuple[float, InputSpec] | None = None
    for changes in _fits(processor, height, width):
        try:
            spec = InputSpec(
                height=height, width=width, channels=channels, mean=mean, std=std, **changes
            )
        except ValidationError as error:
            raise ArgumentsError(f"{name}: the input of its {kind}: {faults(error)}") from error
        got = [preprocess(picture, spec).numpy() for picture in pictures]
        apart = max(
            float(np.abs((mine - its) * scale).mean())
            for mine, its in zip(got, wanted, strict=True)
        )
        if closest is None or apart < closest[0]:
            closest = apart, spec
    if closest is None or closest[0] > _ALIKE:
        raise ArgumentsError(
            f"{name}: no input specification does what its {kind} does; --input-spec says what "
            "comes closest"
        )
    return closest[1]


def _normalisation(processor: Any, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation, by colour in the order red, green, blue."""
    black, white = (
        _processed(processor, Image.new("RGB", (width, height), colour), name)
        for (height, width), colour in zip(_PICTURES, ("black", "white"), strict=True)
    )
    if black.shape != white.shape:
        raise ArgumentsError(
            f"{name}: its {type(processor).__name__} gives pictures of several sizes; "
            "--input-spec says which one to take"
        )
    # Of the centre: some pad what they crop.
    low, high = (each[:, each.shape[1] // 2, each.shape[2] // 2] for each in (black, white))
    mean, std = -low / (high - low), 1 / (high - low)
    # To as many digits as float32 has; adding 0 makes 0 of -0.
    return tuple(float(f"{x:.6g}") + 0 for x in mean), tuple(float(f"{x:.6g}") for x in std)


def _sloped(height: int, width: int) -> Image.Image:
    """Return a picture whose colours change steadily along its sides."""
    slopes = [np.linspace(0, 255, size) for size in (height, width)]
    down, across = np.meshgrid(*slopes, indexing="ij")
    return Image.fromarray(np.stack([across, down, (across + down) / 2], 2).astype(np.uint8))


def _fits(processor: Any, height: int, width: int) -> Iterator[dict[str, Any]]:
    """Yield what may be the fit of a processor, by what it keeps under any name."""
    side = min(height, width)
    sizes = [getattr(processor, name, None) or {} for name in ("size", "crop_size")]
    kept = {int(v) for size in sizes for v in dict(size).values() if isinstance(v, int | float)}
    # LeViT's enlarges by this ratio, which it does not keep.
    ratios = [1, getattr(processor, "crop_pct", None) or 1, 224 / 256]
    resizes = {int(size / ratio) for size in {side, *kept} for ratio in ratios}
    filtered = dict(enumerate(_FILTERS)).get(getattr(processor, "resample", 2), "bilinear")
    for resize in sorted(each for each in resizes if each >= side):
        for fit in ("squash", "crop", "pad"):
            yield {"fit": fit, "resize": resize, "interpolation": filtered}


def _swaps_colours(processor: Any) -> bool:
    return bool(getattr(processor, "do_flip_channel_order", False))


def _processed(
    processor: Any, picture: Image.Image, name: str
) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Return what a processor makes of a picture, [C, H, W], in the order red, green, blue."""
    try:
        found = processor(picture, return_tensors="pt")["pixel_values"]
    except Exception as error:
        # Processors of any kind fail in many ways, which share no class.
        raise ArgumentsError(
            f"{name}: its {type(processor).__name__} takes no picture ({_first_line(error)}); "
            "--input-spec says the input"
        ) from error
    pixels = np.asarray(found[0], dtype=np.float64)
    return pixels[::-1] if _swaps_colours(processor) else pixels


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
