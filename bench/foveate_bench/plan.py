"""What is to be measured: the bundles, the configurations of each, and the pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate_bench.machine import Machine
from foveate_bench.results import OUTPUT_KINDS, Case, Configuration, OutputKind, Refusal
from foveate_runtime.backends.base import BackendError
from foveate_runtime.backends.registry import BACKENDS, require_backend
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.folder import model_names, version_paths
from foveate_runtime.bundle.golden import open_golden
from foveate_runtime.bundle.manifest import CAM_PREFIX, FEATURES_PREFIX, LOGITS_OUTPUT, Manifest
from foveate_runtime.cores import count_cores
from foveate_runtime.evaluation.accuracy import prepared
from foveate_runtime.evaluation.labelled import (
    ImageFolder,
    LabelledError,
    NoPicturesError,
    open_folder,
)

ALL = "all"
"""Stands for every backend, and is none's name."""


class PlanError(Exception):
    """What was asked for cannot be measured; the message says what to do about it."""


class ChoiceError(PlanError):
    """What was asked for does not exist."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a user wants measured; an empty tuple stands for everything that there is.

    `without` are backends that are measured only where they are named. `data` holds
    labelled folders by model; that of the name "" is for the models without one of
    their own.
    """

    repository: Path
    models: tuple[str, ...]
    backends: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    threads: tuple[int, ...] = ()
    devices: tuple[str, ...] = ()
    outputs: tuple[OutputKind, ...] = OUTPUT_KINDS
    without: tuple[str, ...] = ()
    data: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """One bundle and what is measured of it.

    `images` is uint8 [N, H, W, C], at least one, and `pictures` says where they
    come from. `labelled` is what the accuracy is measured on, if anything.
    """

    bundle: Bundle
    configurations: tuple[Configuration, ...]
    outputs: tuple[OutputKind, ...]
    batches: tuple[int, ...]
    images: NDArray[np.uint8]
    pictures: str
    labelled: ImageFolder | None

    def batch(self, size: int) -> NDArray[np.uint8]:
        """Return so many pictures, repeated where there are fewer."""
        return self.images[np.arange(size) % len(self.images)]

    def cases(self, configuration: Configuration, kind: OutputKind) -> list[Case]:
        """Return what is timed of a configuration, small batches first."""
        return [
            Case(**configuration.model_dump(), batch=batch, outputs=kind)
            for batch in sorted(self.batches)
        ]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured, and what is not, with the reason."""

    models: tuple[ModelPlan, ...]
    refusals: tuple[Refusal, ...]


def make_plan(choice: Choice, machine: Machine) -> Plan:
    """Find out what can be measured of what was chosen.

    Backends that are left to choose are those installed whose devices are there;
    the others are refusals.

    Raises:
        ChoiceError: no such model, or a backend that no device chosen fits.
        PlanError: a variant that a bundle has not, or no pictures to measure on.
        foveate_runtime.backends.base.BackendError: a backend chosen by name is not
            installed.
        foveate_runtime.bundle.bundle.BundleError: a bundle cannot be opened.
        foveate_runtime.evaluation.labelled.LabelledError: a folder of labelled
            pictures does not fit its model.
    """
    devices = choice.devices or (("cpu", "cuda:0") if machine.gpus else ("cpu",))
    pairs, refusals = _pairs(choice.backends, devices, choice.without)
    models = []
    for name in choice.models:
        bundle = Bundle.open(_newest(choice.repository, name))
        manifest = bundle.manifest
        _check_variants(manifest, choice)
        outputs = tuple(kind for kind in choice.outputs if _has(manifest, kind))
        refusals += [
            Refusal(what=f"{name}, {kind}", reason="the bundle's graph has no such output")
            for kind in choice.outputs
            if kind not in outputs
        ]
        images, pictures, labelled = _pictures(bundle, choice)
        models.append(
            ModelPlan(
                bundle=bundle,
                configurations=tuple(_configurations(manifest, choice, pairs)),
                outputs=outputs,
                batches=choice.batches,
                images=images,
                pictures=pictures,
                labelled=labelled,
            )
        )
    return Plan(models=tuple(models), refusals=tuple(refusals))


def output_names(kind: OutputKind, manifest: Manifest) -> list[str]:
    """Return the outputs of the graph that `kind` stands for.

    Of several methods it is the first, of several layers the last.
    """
    if kind == "cam":
        return [LOGITS_OUTPUT, CAM_PREFIX + manifest.cams[0].method]
    if kind == "features":
        return [LOGITS_OUTPUT, FEATURES_PREFIX + manifest.features[-1].layer]
    return [LOGITS_OUTPUT]


def _has(manifest: Manifest, kind: OutputKind) -> bool:
    return {"logits": True, "cam": bool(manifest.cams), "features": bool(manifest.features)}[kind]


def _pairs(
    backends: Sequence[str], devices: Sequence[str], without: Sequence[str]
) -> tuple[list[tuple[str, str]], list[Refusal]]:
    """Return the backends with the devices that they run on, and what is left out."""
    named = [name for name in backends if name != ALL]
    every = [name for name in BACKENDS if name in named or name not in without]
    chosen = named if named and ALL not in backends else every
    pairs, refusals = [], []
    for name in dict.fromkeys(chosen):
        try:
            require_backend(name)
        except BackendError as error:
            if name in named:
                raise
            reason, _, remedy = str(error).partition(": ")
            refusals.append(Refusal(what=name, reason=reason, remedy=remedy))
            continue
        fitting = [d for d in devices if d.partition(":")[0] in BACKENDS[name].devices]
        if fitting:
            pairs += [(name, device) for device in fitting]
            continue
        reason = f"it runs on {' or '.join(BACKENDS[name].devices)}, not on {' or '.join(devices)}"
        if name in named:
            raise ChoiceError(f"the backend {name!r}: {reason}")
        refusals.append(Refusal(what=name, reason=reason, remedy="a machine with such a device"))
    return pairs, refusals


def every_model(repository: Path) -> tuple[str, ...]:
    """Return the models of a repository that have a version; raises ChoiceError for none."""
    if not repository.is_dir():
        raise ChoiceError(f"{repository}: no such folder")
    found = tuple(n for n in model_names(repository) if version_paths(repository, n))
    if not found:
        raise ChoiceError(f"{repository} holds no model")
    return found


def _newest(repository: Path, name: str) -> Path:
    paths = version_paths(repository, name) if repository.is_dir() else {}
    if paths:
        return paths[max(paths)]
    if not repository.is_dir():
        raise ChoiceError(f"{repository}: no such folder")
    there = ", ".join(n for n in model_names(repository) if version_paths(repository, n))
    raise ChoiceError(f"{repository} holds no model {name!r}; there are {there or 'none'}")


def _check_variants(manifest: Manifest, choice: Choice) -> None:
    have = [entry.name for entry in manifest.variants]
    missing = [name for name in choice.variants if name not in have]
    if not missing:
        return
    calibration = " --calibration DIR" if any(v.startswith("int8") for v in missing) else ""
    raise PlanError(
        f"{manifest.name} has no variant {', '.join(missing)}; it has {', '.join(have)}. "
        f"This exports a version with them, SOURCE being what {manifest.classifier} was exported "
        f"from:\n    foveate export SOURCE --repository {choice.repository} "
        f"--name {manifest.name} --variants {','.join([*have, *missing])}{calibration}"
    )


def _configurations(
    manifest: Manifest, choice: Choice, pairs: Sequence[tuple[str, str]]
) -> Iterator[Configuration]:
    for variant in choice.variants or [entry.name for entry in manifest.variants]:
        for backend, device in pairs:
            # A GPU's work is not shared out among the processor's threads.
            on_cpu = device == "cpu"
            for threads in (choice.threads if on_cpu else ()) or (count_cores(),):
                yield Configuration(
                    model=manifest.name,
                    version=manifest.version,
                    variant=variant,
                    backend=backend,
                    device=device,
                    threads=threads,
                )


def _pictures(bundle: Bundle, choice: Choice) -> tuple[NDArray[np.uint8], str, ImageFolder | None]:
    """Return the pictures to time, where they come from, and those to score."""
    manifest = bundle.manifest
    folder = choice.data.get(manifest.name, choice.data.get(""))
    if folder is not None:
        try:
            labelled = open_folder(folder, bundle.labels)
        except NoPicturesError:
            raise
        except LabelledError as error:
            raise LabelledError(
                f"{manifest.name}: {error} (--data MODEL=DIR names the folder of one model)"
            ) from error
        some = open_folder(folder, bundle.labels, max(choice.batches))
        images = [prepared(data, manifest.input, name) for name, data, _ in some]
        return np.stack(images), f"{len(images)} pictures of {folder.name}", labelled
    golden = open_golden(bundle)
    if golden is None or manifest.golden is None:
        raise PlanError(
            f"{manifest.name} keeps no pictures to measure on; name a folder of them with --data"
        )
    return golden.images, f"{len(golden.images)} {manifest.golden.data}", None
