"""Edits an ONNX file into a bundle, compares the two and publishes the bundle."""

import platform
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate_export.anatomy.layer import Layer, named
from foveate_export.errors import ExportError, ParityError
from foveate_export.existing.editing import write_graph
from foveate_export.existing.original import Original
from foveate_export.existing.source import Existing
from foveate_export.pictures import Pictures
from foveate_export.progress import Stage
from foveate_export.proof.comparison import (
    TOLERANCES,
    Comparison,
    relative_error,
    resolve_ranks,
    some_class_ids,
)
from foveate_export.publish.bundle import (
    Exported,
    check_name,
    feature_outputs,
    write_labels,
)
from foveate_runtime.backends.base import Array, BackendError, Runner
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle import golden, publishing
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import (
    CAM_PREFIX,
    CLASS_IDS_INPUT,
    FEATURES_PREFIX,
    IMAGE_INPUT,
    LABELS_FILE,
    LOGITS_OUTPUT,
    CamOutput,
    GoldenEntry,
    Manifest,
    Parity,
    VariantEntry,
)
from foveate_runtime.bundle.scores import score
from foveate_runtime.evaluation.completeness import with_completeness

GRAPH = "model.onnx"
BATCH = 4
"""Enough to show a mix-up between pictures."""


def export_existing(
    source: Existing,
    labels: Sequence[str],
    *,
    repository: Path,
    name: str,
    pictures: Pictures,
    version: int | None = None,
    layers: Sequence[str] | None = None,
    stage: Stage = nullcontext,
) -> Exported:
    """Write an ONNX file into a repository as a bundle that was compared with it.

    Args:
        source: the file; edited in memory, and not to be exported again.
        labels: the name of each class, by index.
        repository: the folder of models; made where it is missing.
        name: the model's name there.
        pictures: what the two graphs are compared on.
        version: the version to write; None for one above the newest.
        layers: the feature maps to offer, by the names of nodes; None for the
            last of each size.
        stage: called for each step, to show progress.

    Raises:
        UsageError: the name, a layer or the number of labels cannot be.
        RepositoryError: the version exists or the repository cannot be written.
        ParityError: the bundle does not answer as the file does.
        ExportError: ONNX Runtime cannot run the file, or only with its own
            number of pictures.
    """
    check_name(name)
    source, labels = source.labelled(labels)
    if version is not None:
        publishing.check_free(repository, name, version)
    chosen = (
        source.default_layers if layers is None else named(layers, source.layers, source.left_out)
    )
    with stage("loading the file as it is"):
        original = Original(source, chosen)
    with publishing.staging(repository, name) as folder:
        with stage("editing the graph"):
            write_graph(source, chosen, folder / GRAPH)
            write_labels(labels, folder / LABELS_FILE)
        draft = _draft(source, name, labels, chosen)
        staged = Bundle(path=folder, manifest=draft, labels=tuple(labels))
        with stage(f"comparing with {source.path.name} on {len(pictures)} pictures"):
            parity = _compare(source, original, staged, pictures)
        tolerances = TOLERANCES[source.precision]
        entry = VariantEntry(
            name=source.precision, file=GRAPH, parity=parity, tolerances=tolerances
        )
        kept = _write_golden(original, len(labels), pictures, staged)
        manifest = draft.model_copy(update={"variants": (entry,), "golden": kept})
        staged = Bundle(path=folder, manifest=manifest, labels=tuple(labels))
        with stage("adding up the maps"):
            manifest = with_completeness(staged, pictures.images)
        with stage("publishing"):
            path, manifest = publishing.publish(folder, manifest, repository, version)
    return Exported(path, manifest, source.note or None)


def _compare(source: Existing, original: Original, staged: Bundle, pictures: Pictures) -> Parity:
    """Compare every output of the bundle with the file, and the maps with the logits."""
    comparison = Comparison(source.path.name)
    outputs = _output_names(staged.manifest)
    complete, agreed = 0.0, 0.0
    with create_runner(staged, variant=source.precision, backend="onnxruntime") as runner:
        for images in pictures.batches(BATCH):
            class_ids = some_class_ids(len(images), len(staged.labels))
            got = _run(runner, images, class_ids, outputs)
            classes = resolve_ranks(class_ids, got[LOGITS_OUTPUT])
            comparison.add(got, original.answer(images, classes))
            complete = max(complete, _incompleteness(source, got, classes))
            agreed = max(
                agreed, _output_error(source, got[LOGITS_OUTPUT], original.outputs(images))
            )
    tolerances = TOLERANCES[source.precision]
    layers = {cam.method: cam.layer for cam in staged.manifest.cams}
    comparison.judge(layers, tolerances, pictures)
    if not agreed <= tolerances.logits:
        raise ParityError(
            f"the {'scores' if source.ending.altered else 'logits'} of the graph differ from the "
            f"file's by {agreed:.2g} of the largest"
        )
    if not complete <= tolerances.logits:
        raise ParityError(
            f"cam.cam is not complete: its mean and the bias differ from the logit by "
            f"{complete:.2g} of the largest, where {tolerances.logits:.2g} is accepted"
        )
    return comparison.result(pictures)


def _run(
    runner: Runner, images: NDArray[np.uint8], class_ids: NDArray[np.int64], outputs: list[str]
) -> dict[str, Array]:
    inputs: dict[str, Array] = {IMAGE_INPUT: images}
    if CLASS_IDS_INPUT in runner.inputs:
        inputs[CLASS_IDS_INPUT] = class_ids
    try:
        return runner.run(inputs, outputs)
    except BackendError as error:
        raise ExportError(
            f"the edited graph does not take {len(images)} pictures at once ({error}): the file "
            "fixes their number; export it again with a dynamic batch"
        ) from error


def _incompleteness(source: Existing, got: dict[str, Array], classes: NDArray[np.int64]) -> float:
    """Return how far mean(CAM[c]) + b[c] lies from z[c], relative to the largest logit."""
    if source.head is None:
        return 0.0
    linear = source.head.linear
    bias = linear.bias[classes] if linear else 0
    logits = np.take_along_axis(got[LOGITS_OUTPUT], classes, axis=1)
    return relative_error(got[f"{CAM_PREFIX}cam"].mean((2, 3)) + bias, logits, (1,))


def _output_error(source: Existing, logits: Array, expected: Array) -> float:
    """Return how far the file's own output lies from what the logits give."""
    ending = source.ending
    if not ending.altered:
        return relative_error(logits, expected, (1,))
    return relative_error(score(logits, ending.scores), ending.expected(expected), (1,))


def _write_golden(
    original: Original, classes: int, pictures: Pictures, staged: Bundle
) -> GoldenEntry:
    """Keep some of the pictures and the file's answers to them in the bundle."""
    images = golden.fitting(pictures.images)
    class_ids = some_class_ids(len(images), classes)
    logits = original.answer(images, np.zeros_like(class_ids)).logits
    resolved = resolve_ranks(class_ids, logits)
    answers = original.answer(images, resolved)
    golden.Golden(
        images=images,
        class_ids=resolved if staged.manifest.cams else None,
        outputs=golden.expect(answers.outputs),
    ).write(staged.path / golden.GOLDEN_FILE)
    return GoldenEntry(file=golden.GOLDEN_FILE, images=len(images), data=pictures.description)


def _output_names(manifest: Manifest) -> list[str]:
    return [
        LOGITS_OUTPUT,
        *(CAM_PREFIX + cam.method for cam in manifest.cams),
        *(FEATURES_PREFIX + feature.layer for feature in manifest.features),
    ]


def _draft(source: Existing, name: str, labels: Sequence[str], layers: Sequence[Layer]) -> Manifest:
    """Return the manifest as far as it is known before anything was measured."""
    packages = ("foveate-export", "onnx", "onnxruntime")
    # Constructed without validation: a variant is not whole before it is measured.
    return Manifest.model_construct(
        format="foveate.bundle/1",
        name=name,
        version=1,
        classifier=source.path.name,
        arguments={},
        created=datetime.now(UTC).replace(microsecond=0),
        versions={"python": platform.python_version()} | {p: installed(p) for p in packages},
        parameters=source.parameters,
        classes=len(labels),
        opset=source.model.opset_imports[""],
        input=source.spec,
        scores=source.ending.scores,
        cams=_cam_outputs(source),
        features=feature_outputs(layers),
        variants=(VariantEntry.model_construct(name=source.precision, file=GRAPH),),
        files={},
        assumptions={
            **source.assumptions,
            "scores": source.ending.said,
            **({"head": source.head.description} if source.head else {}),
            **({"cams": source.note} if source.note else {}),
        },
        metadata={},
    )


def _cam_outputs(source: Existing) -> tuple[CamOutput, ...]:
    head = source.head
    if head is None:
        return ()
    layouts = {layer.path: str(layer.layout) for layer in source.layers}
    axes = "nhwc" if head.channels_last else "nchw"
    return tuple(
        CamOutput(
            method=method,
            layer=source.cam_layer,
            height=head.height,
            width=head.width,
            layout=layouts.get(source.cam_layer, axes),
        )
        for method in head.methods
    )
