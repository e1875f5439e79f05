"""Exports a classifier: builds the graph, proves it and publishes the bundle."""

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from foveate_export import bundle, parity
from foveate_export.errors import ExportError, UnsupportedHeadError, UsageError
from foveate_export.evaluation import accuracy
from foveate_export.graph import ExplainedClassifier
from foveate_export.heads import Head, find_head
from foveate_export.labelled import Labelled
from foveate_export.layers import Layer, feature_layers, select_layers
from foveate_export.onnx_graph import OPSET, write_onnx
from foveate_export.pictures import Pictures, serving_spec
from foveate_export.taps import record
from foveate_serve.backends.registry import create_runner
from foveate_serve.bundle.bundle import Bundle
from foveate_serve.bundle.manifest import (
    LABELS_FILE,
    CamOutput,
    FeatureOutput,
    Manifest,
    Name,
    VariantEntry,
)
from foveate_train.classifier import Classifier

VARIANT = "fp32"
MODEL_FILE = "model.onnx"
SEED = 0

Stage = Callable[[str], AbstractContextManager[object]]
"""Called with what is about to be done; the context lasts as long as that."""


@dataclass(frozen=True)
class Anatomy:
    """What the export found in a classifier.

    `head` is None where no class activation map can be computed in the graph,
    and `note` then says why. `layers` are all that can return a feature map.
    """

    head: Head | None
    note: str | None
    layers: list[Layer]


@dataclass(frozen=True)
class Exported:
    """A published bundle: its folder, its manifest, and what is to be said about it."""

    path: Path
    manifest: Manifest
    note: str | None

    @property
    def size(self) -> int:
        """The bytes of all its files."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def examine(classifier: Classifier) -> Anatomy:
    """Run the classifier once and find its head and its layers.

    Raises:
        ExportError: it does not return one logit a label.
    """
    spec = classifier.input
    generator = torch.Generator().manual_seed(SEED)
    sample = torch.randn(2, spec.height, spec.width, spec.channels, generator=generator)
    with torch.no_grad():
        logits, calls = record(classifier.module, sample.permute(0, 3, 1, 2))
    if not isinstance(logits, Tensor) or logits.shape != (2, len(classifier.labels)):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ExportError(
            f"{classifier.name} returns {shape} for 2 pictures and {len(classifier.labels)} labels"
        )
    try:
        head, note = find_head(logits, calls), None
    except UnsupportedHeadError as error:
        head, note = None, f"no class activation maps: {error}"
    return Anatomy(head, note, feature_layers(calls))


def export(
    classifier: Classifier,
    *,
    repository: Path,
    name: str,
    pictures: Pictures,
    version: int | None = None,
    layers: Sequence[str] | None = None,
    labelled: Labelled | None = None,
    metadata: Mapping[str, str] | None = None,
    stage: Stage = nullcontext,
) -> Exported:
    """Write a classifier into a repository as a bundle that was compared with torch.

    Args:
        classifier: what to export, in evaluation mode on the CPU.
        repository: the folder of models; made where it is missing.
        name: the model's name there.
        pictures: what the graph is compared with torch on.
        version: the version to write; None for one above the newest.
        layers: the feature maps to offer; None for the stage ends.
        labelled: pictures to measure the accuracy on.
        metadata: notes for the manifest.
        stage: told of each step, to show progress.

    Raises:
        UsageError: the name, or a layer, cannot be.
        RepositoryError: the version exists or the repository cannot be written.
        ParityError: the graph does not answer as torch does.
        ExportError: the classifier cannot be written as ONNX.
    """
    check_name(name)
    if version is not None:
        bundle.check_free(repository, name, version)
    with stage("finding the head and the layers"):
        anatomy = examine(classifier)
        chosen = select_layers(layers, classifier.module, anatomy.layers)
    paths = [layer.path for layer in chosen]
    with bundle.staging(repository, name) as folder:
        with stage("writing the graph"):
            graph = ExplainedClassifier(
                classifier.module, classifier.input, anatomy.head, paths
            ).eval()
            write_onnx(graph, classifier.input, folder / MODEL_FILE)
            write_labels(classifier.labels, folder / LABELS_FILE)
        draft = _draft(classifier, name, anatomy.head, chosen, metadata or {})
        opened = Bundle(path=folder, manifest=draft, labels=classifier.labels)
        scored = None
        with create_runner(opened, variant=VARIANT, backend="onnxruntime") as runner:
            with stage(f"comparing with torch on {len(pictures)} pictures"):
                measured = parity.measure(classifier, anatomy.head, paths, pictures, run=runner.run)
            if labelled is not None:
                with stage(f"classifying {len(labelled)} labelled pictures"):
                    scored = accuracy(runner, draft.input, labelled)
        with stage("publishing"):
            variant = VariantEntry(name=VARIANT, file=MODEL_FILE, parity=measured, accuracy=scored)
            path, manifest = bundle.publish(
                folder, draft.model_copy(update={"variants": (variant,)}), repository, version
            )
    return Exported(path, manifest, anatomy.note)


def check_name(name: str) -> None:
    """Raise UsageError unless `name` can be a model's name and a folder's."""
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise UsageError(
            f"name {name!r}: letters, digits, '.', '_' and '-', at most 128, "
            "beginning with a letter or a digit"
        ) from error


def write_labels(labels: Sequence[str], path: Path) -> None:
    """Write one label a line.

    Raises:
        ExportError: a label holds a line break.
    """
    for label in labels:
        if "\n" in label:
            raise ExportError(f"label {label!r} holds a line break")
    path.write_text("\n".join(labels) + "\n", encoding="utf-8", newline="\n")


def _draft(
    classifier: Classifier,
    name: str,
    head: Head | None,
    layers: Sequence[Layer],
    metadata: Mapping[str, str],
) -> Manifest:
    """Return the manifest as far as it is known before anything was measured."""
    packages = ("foveate-export", "torch", "torchvision", "timm", "onnx", "onnxscript")
    # Constructed without validation: a variant is not whole before it is measured.
    return Manifest.model_construct(
        format="foveate.bundle/1",
        name=name,
        version=1,
        classifier=classifier.name,
        arguments=classifier.arguments,
        created=datetime.now(UTC).replace(microsecond=0),
        versions={"python": platform.python_version()} | {p: installed(p) for p in packages},
        parameters=sum(parameter.numel() for parameter in classifier.module.parameters()),
        classes=len(classifier.labels),
        opset=OPSET,
        input=serving_spec(classifier.input),
        cams=_cam_outputs(head) if head else (),
        features=tuple(
            FeatureOutput(
                layer=layer.path, channels=layer.channels, height=layer.height, width=layer.width
            )
            for layer in layers
        ),
        variants=(VariantEntry.model_construct(name=VARIANT, file=MODEL_FILE),),
        files={},
        metadata=dict(metadata),
    )


def _cam_outputs(head: Head) -> tuple[CamOutput, ...]:
    height, width = head.size
    return tuple(
        CamOutput(method=method, layer=str(head.activations), height=height, width=width)
        for method in head.methods
    )
