"""Exports a classifier: builds the graph, proves it and publishes the bundle."""

import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foveate_export.anatomy.ending import Ending, probes
from foveate_export.anatomy.layer import Layer
from foveate_export.anatomy.layers import feature_layers, select_layers, taps_of
from foveate_export.anatomy.logits import as_logits
from foveate_export.anatomy.recording import record
from foveate_export.anatomy.taps import Tap
from foveate_export.errors import (
    ExportError,
    ParityError,
    UnseenAttentionError,
    UnsupportedHeadError,
    UsageError,
)
from foveate_export.graph.classifier import ExplainedClassifier
from foveate_export.graph.heads import Head, find_head
from foveate_export.graph.onnx import OPSET, write_onnx
from foveate_export.pictures import Pictures
from foveate_export.progress import Stage
from foveate_export.proof import parity
from foveate_export.proof.comparison import accepted
from foveate_export.proof.reference import answer
from foveate_export.publish import bundle
from foveate_export.publish.bundle import (
    NO_CAMS,
    Exported,
    check_name,
    feature_outputs,
    write_labels,
)
from foveate_export.publish.tensorrt.engines import build_engines, suitable_variants
from foveate_export.publish.tensorrt.target import Target
from foveate_export.publish.variants import FP16, FP32, INT8, VARIANTS, file_name, unmeasured
from foveate_export.publish.variants.acceptance import MAX_DROP, check_drop, quantise_until_accepted
from foveate_export.publish.variants.calibration import Calibration
from foveate_export.publish.variants.half import halve
from foveate_export.publish.variants.ranges import loud_nodes
from foveate_runtime.backends.base import BackendError, Runner
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.backends.tensorrt.sidecar import ENGINES_FOLDER
from foveate_runtime.bundle import golden, publishing
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import (
    LABELS_FILE,
    Accuracy,
    CamOutput,
    GoldenEntry,
    Manifest,
    Parity,
    Tolerances,
    VariantEntry,
)
from foveate_runtime.evaluation.accuracy import measure_accuracy
from foveate_runtime.evaluation.completeness import with_completeness
from foveate_runtime.evaluation.labelled import Labelled
from foveate_runtime.evaluation.trusted import (
    calibrate_where_possible,
    check_enough,
    require_probabilities,
)
from foveate_train.classifier import Classifier

SEED = 0


@dataclass(frozen=True)
class Anatomy:
    """What the export found in a classifier.

    `head` is None where no class activation map can be computed in the graph,
    and `note` then says why. `layers` are all that can return a feature map;
    `left_out` says of each other module that returns several axes why it cannot.
    """

    head: Head | None
    note: str | None
    layers: list[Layer]
    left_out: Mapping[str, str]


def examine(classifier: Classifier, cam_layer: str | None = None, *, cams: bool = True) -> Anatomy:
    """Run the classifier on noise and find its head and its layers.

    Args:
        classifier: what to look into.
        cam_layer: the layer whose activations the maps are to weigh; None for
            the last one, and for no maps where the head has none there.
        cams: whether to look for a head at all.

    Raises:
        UnknownLayerError: no layer is called `cam_layer`.
        UnsupportedHeadError: what follows `cam_layer` cannot be differentiated.
        ExportError: it does not return one logit a label.
    """
    spec = classifier.input
    generator = torch.Generator().manual_seed(SEED)
    sample = torch.randn(2, spec.height, spec.width, spec.channels, generator=generator)
    with torch.no_grad():
        recording = record(classifier.module, sample.permute(0, 3, 1, 2))
    logits = recording.logits
    if not isinstance(logits, Tensor) or logits.shape != (2, len(classifier.labels)):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ExportError(
            f"{classifier.name} returns {shape} for 2 pictures and {len(classifier.labels)} labels"
        )
    if not cams:
        return Anatomy(None, NO_CAMS, feature_layers(recording), recording.left_out)
    try:
        head: Head | None = _checked(classifier, find_head(recording, cam_layer))
        note = head.note if head else None
    except UnsupportedHeadError as error:
        if cam_layer is not None:
            raise
        head, note = None, f"no class activation maps: {error}"
    return Anatomy(head, note, feature_layers(recording), recording.left_out)


def _checked(classifier: Classifier, head: Head) -> Head:
    """Return the head, without maps of attention where torch's own run shows it otherwise.

    Raises:
        UnsupportedHeadError: autograd, which maps are compared with, gives nothing.
    """
    try:
        _check_gradient(classifier, head)
    except UnseenAttentionError as error:
        head = head.without_attention
        head.note = f"no maps of the tokens' attention: {error}"
        _check_gradient(classifier, head)
    return head


def _check_gradient(classifier: Classifier, head: Head) -> None:
    """Raise UnsupportedHeadError where autograd, which maps are compared with, gives nothing."""
    spec = classifier.input
    # Two, as a network may squeeze the axis of one away.
    images = np.zeros((2, spec.height, spec.width, spec.channels), np.uint8)
    try:
        answer(classifier, images, head=head, classes=np.zeros((2, 1), np.int64))
    except RuntimeError as error:
        said = str(error).partition("\n")[0]
        raise UnsupportedHeadError(
            "autograd gives no gradient to compare them with, as in a forward pass under "
            f"torch.no_grad or with detach ({said})"
        ) from error


def export(
    classifier: Classifier,
    *,
    repository: Path,
    name: str,
    pictures: Pictures,
    ending: Ending | None = None,
    anatomy: Anatomy | None = None,
    version: int | None = None,
    layers: Sequence[str] | None = None,
    cam_layer: str | None = None,
    cams: bool = True,
    variants: Sequence[str] = (FP32,),
    calibration: Calibration | None = None,
    labelled: Labelled | None = None,
    coverages: Sequence[float] = (),
    max_drop: float = MAX_DROP,
    target: Target | None = None,
    metadata: Mapping[str, str] | None = None,
    corrupt: list[str] | None = None,
    stage: Stage = nullcontext,
) -> Exported:
    """Write a classifier into a repository as a bundle that was compared with torch.

    Args:
        classifier: what to export, in evaluation mode on the CPU.
        repository: the folder of models; made where it is missing.
        name: the model's name there.
        pictures: what the graph is compared with torch on.
        ending: what makes scores of its logits, where it returns logits; None to find
            it, with what has to be taken off.
        anatomy: what `examine` found in it with this `ending`; None to examine it.
        version: the version to write; None for one above the newest.
        layers: the feature maps to offer; None for the stage ends.
        cam_layer: the layer whose activations Grad-CAM and its kin weigh; None
            for the last one.
        cams: whether the graph returns class activation maps, where it can.
        variants: the precisions to write, the one to serve by default first.
        calibration: the pictures that int8 is calibrated on.
        labelled: pictures to measure the accuracy on, and to calibrate on.
        coverages: of the prediction sets; none for those that the pictures suffice for,
            and for no calibration where they suffice for none.
        max_drop: the points of top-1 on `labelled` that a variant may lose against fp32.
        target: what TensorRT engines of the variants are built for; None for none.
        metadata: notes for the manifest.
        corrupt: gets what is wrong with each labelled picture that cannot be decoded,
            and that is left out; None where there must be none.
        stage: called for each step, to show progress.

    Raises:
        UsageError: the name, a layer or a variant cannot be.
        UnsupportedHeadError: what follows `cam_layer` cannot be differentiated.
        RepositoryError: the version exists or the repository cannot be written.
        ParityError: a variant does not answer as torch does.
        AccuracyError: a variant recognises too much less than fp32.
        EngineError: TensorRT cannot build a variant.
        ExportError: the classifier cannot be written as ONNX, or its scores cannot be determined.
        foveate_runtime.evaluation.labelled.LabelledError: a labelled picture cannot
            be decoded.
    """
    check_name(name)
    check_weights(classifier)
    check_variants(variants, calibrated=calibration is not None)
    if version is not None:
        publishing.check_free(repository, name, version)
    if ending is None:
        with stage("finding what its outputs are"):
            classifier, ending = as_logits(classifier, probes(pictures, classifier.input))
    if coverages and labelled is not None:
        require_probabilities(ending.scores, table=False)
        check_enough(len(labelled), coverages, ending.scores)
    with stage("finding the head and the layers"):
        anatomy = anatomy or examine(classifier, cam_layer, cams=cams)
        chosen = select_layers(layers, classifier.module, anatomy.layers, anatomy.left_out)
    taps = taps_of(chosen)
    with publishing.staging(repository, name) as folder:
        with stage("writing the graph"):
            graph = ExplainedClassifier(
                classifier.module, classifier.input, anatomy.head, taps
            ).eval()
            write_onnx(graph, classifier.input, folder / file_name(FP32))
            write_labels(classifier.labels, folder / LABELS_FILE)
        draft = _draft(
            classifier, name, anatomy.head, chosen, metadata or {}, ending=ending, note=anatomy.note
        )
        writer = _VariantWriter(
            oracle=classifier,
            anatomy=anatomy,
            layers=taps,
            bundle=Bundle(path=folder, manifest=draft, labels=classifier.labels),
            pictures=pictures,
            calibration=calibration,
            labelled=labelled,
            max_drop=max_drop,
            corrupt=corrupt,
            stage=stage,
        )
        # The others are made of fp32 and compared with it.
        written = {variant: writer.write(variant) for variant in dict.fromkeys((FP32, *variants))}
        if FP32 not in variants:
            (folder / file_name(FP32)).unlink()
        manifest = draft.model_copy(
            update={
                "variants": tuple(written[variant] for variant in dict.fromkeys(variants)),
                "golden": writer.write_golden(),
            }
        )
        staged = Bundle(path=folder, manifest=manifest, labels=classifier.labels)
        with stage("adding up the maps"):
            manifest = with_completeness(staged, pictures.images)
        if labelled is not None:
            staged = Bundle(path=folder, manifest=manifest, labels=classifier.labels)
            with stage(f"calibrating on {len(labelled)} labelled pictures"):
                manifest = calibrate_where_possible(staged, labelled, coverages)
        if target is not None:
            suitable = suitable_variants(manifest)
            engines = folder / ENGINES_FOLDER
            build_engines(folder, manifest, suitable, target, folder=engines, stage=stage)
        with stage("publishing"):
            path, manifest = publishing.publish(folder, manifest, repository, version)
    return Exported(path, manifest, anatomy.note)


@dataclass(kw_only=True)
class _VariantWriter:
    """Writes the variants of one bundle, and measures each through the runtime's runner.

    `oracle` is the classifier in torch, in the precision that fp32 was compared in.
    """

    oracle: Classifier
    anatomy: Anatomy
    layers: Sequence[Tap]
    bundle: Bundle
    pictures: Pictures
    calibration: Calibration | None
    labelled: Labelled | None
    max_drop: float
    corrupt: list[str] | None
    stage: Stage
    accuracies: dict[str, Accuracy] = field(default_factory=dict)

    def write(self, variant: str) -> VariantEntry:
        """Write a variant's graph, unless it is fp32, and return what was measured of it."""
        source, target = (self.bundle.path / file_name(name) for name in (FP32, variant))
        quantisation = None
        if variant in INT8 and self.calibration:
            quantisation, scored = quantise_until_accepted(
                variant,
                source,
                target,
                scheme=INT8[variant],
                calibration=self.calibration,
                score=lambda: self._score(variant),
                fp32=self.accuracies.get(FP32),
                max_drop=self.max_drop,
                stage=lambda text: self.stage(f"{variant}: {text}"),
            )
        else:
            if variant == FP16:
                self._halve(source, target)
            scored = self._score(variant)
            if scored and variant != FP32:
                check_drop(variant, scored, self.accuracies[FP32], self.max_drop)
        if scored:
            self.accuracies[variant] = scored
        return VariantEntry(
            name=variant,
            file=file_name(variant),
            parity=self._compare(variant),
            tolerances=self._tolerances(variant),
            accuracy=scored,
            quantisation=quantisation,
        )

    def _halve(self, source: Path, target: Path) -> None:
        images = self.pictures.images
        if self.calibration:
            images = np.concatenate([images, self.calibration.images])
        with self.stage(f"{FP16}: measuring the ranges of {len(images)} pictures' values"):
            loud = loud_nodes(source, images)
        with self.stage(f"{FP16}: converting the graph; {len(loud)} nodes stay in float32"):
            halve(source, target, loud)

    def write_golden(self) -> GoldenEntry:
        """Keep some of the pictures and torch's answers to them in the bundle."""
        images = golden.fitting(self.pictures.images)
        head = self.anatomy.head
        class_ids = parity.some_classes(self.oracle, images) if head else None
        answers = answer(self.oracle, images, layers=self.layers, head=head, classes=class_ids)
        golden.Golden(
            images=images,
            class_ids=class_ids,
            outputs=golden.expect(answers.outputs, answers.output_sizes),
        ).write(self.bundle.path / golden.GOLDEN_FILE)
        return GoldenEntry(
            file=golden.GOLDEN_FILE, images=len(images), data=self.pictures.description
        )

    def _compare(self, variant: str) -> Parity:
        text = f"{variant}: comparing with torch on {len(self.pictures)} pictures"
        with self._judge(variant) as runner, self.stage(text):
            try:
                figures, self.oracle = parity.settle(
                    self.oracle,
                    self.anatomy.head,
                    self.layers,
                    self.pictures,
                    run=runner.run,
                    tolerances=self._tolerances(variant),
                )
            except ParityError as error:
                raise type(error)(f"{variant}: {error}") from error
        return figures

    def _tolerances(self, variant: str) -> Tolerances:
        head = self.anatomy.head
        return accepted(variant, selecting=head is not None and head.selects)

    def _score(self, variant: str) -> Accuracy | None:
        if self.labelled is None:
            return None
        text = f"{variant}: classifying {len(self.labelled)} labelled pictures"
        with self.stage(text), self._runner(variant) as runner:
            return measure_accuracy(
                runner, self.bundle.manifest.input, self.labelled, corrupt=self.corrupt
            )

    def _runner(self, variant: str) -> Runner:
        return create_runner(self.bundle, variant=variant, backend="onnxruntime")

    def _judge(self, variant: str) -> Runner:
        """Load a variant where it is computed in its own precision."""
        # ONNX Runtime computes halves in float32 on a CPU, where nothing overflows.
        if variant == FP16:
            try:
                return create_runner(self.bundle, variant=variant, backend="torch")
            except BackendError as error:
                with self.stage(f"{FP16}: judged in float32 and by its ranges, for {error}"):
                    pass
        return self._runner(variant)


def check_weights(classifier: Classifier) -> None:
    """Raise ExportError where the network's values are more than a bundle holds."""
    # A tensor that stands in several places is one here.
    tensors = [*classifier.module.parameters(), *classifier.module.buffers()]
    numbers = sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())
    bundle.check_size(4 * numbers, f"{classifier.name}, {numbers:,} values in float32")


def check_variants(variants: Sequence[str], *, calibrated: bool) -> None:
    """Raise UsageError for an unknown variant, for none, and for int8 without pictures."""
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown:
        raise UsageError(f"no variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    if not variants:
        raise UsageError(f"no variant is named; there are {', '.join(VARIANTS)}")
    quantised = [variant for variant in variants if variant in INT8]
    if quantised and not calibrated:
        raise UsageError(
            f"{', '.join(quantised)}: int8 needs pictures to measure its ranges on: "
            "--calibration with a folder of some hundred, or mnist for a classifier of digits"
        )


def _draft(
    classifier: Classifier,
    name: str,
    head: Head | None,
    layers: Sequence[Layer],
    metadata: Mapping[str, str],
    *,
    ending: Ending,
    note: str | None,
) -> Manifest:
    """Return the manifest as far as it is known before anything was measured."""
    packages = (
        "foveate-export",
        "torch",
        "torchvision",
        "timm",
        "onnx",
        "onnxscript",
        "onnxruntime",
    )
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
        input=classifier.input,
        scores=ending.scores,
        cams=_cam_outputs(head) if head else (),
        features=feature_outputs(layers),
        variants=tuple(unmeasured(variant) for variant in VARIANTS),
        files={},
        assumptions={
            **classifier.assumptions,
            "scores": ending.said,
            **({"head": head.description} if head else {}),
            **({"cams": note} if note else {}),
        },
        metadata=dict(metadata),
    )


def _cam_outputs(head: Head) -> tuple[CamOutput, ...]:
    return tuple(
        CamOutput(
            method=method,
            layer=str(target.tap),
            height=target.height,
            width=target.width,
            layout=str(target.tap.layout),
        )
        for method, target in head.targets.items()
    )
