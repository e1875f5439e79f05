"""Runs a comparison: every variant with every seed, resumable at any step.

In the folder of the results:

    results.json, results.csv   what was measured, after every epoch
    README.md, curves.png,
    gradients.png               the page, drawn from results.json
    .state/                     where each run stands
"""

import itertools
from threading import Event

from foveate_train import registry
from foveate_train.data.memory import InMemory
from foveate_train.environment import machine, versions
from foveate_train.loop import Training, compute_type
from foveate_train.progress import StepProgress
from foveate_train.run import Run
from foveate_train.studies import gradients, report
from foveate_train.studies.comparison import Comparison
from foveate_train.studies.options import StudyOptions
from foveate_train.studies.results import Entry, Results


def run(study: Comparison, options: StudyOptions, stop: Event) -> bool:
    """Run a study, or what remains of it; return whether it is complete.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    device = options.use_machine()
    settings = options.settings(study.settings)
    spec = registry.create(study.classifier).input
    training, test = options.digits(spec, shift=settings.shift)
    entries = [
        Entry(variant=variant, seed=seed, epochs=[])
        for variant, seed in itertools.product(study.variants, options.seeds)
    ]
    results = Results(
        study=study.name,
        settings=settings.model_dump(mode="json", exclude={"seed"}),
        precision=str(compute_type(settings, device)).removeprefix("torch."),
        training_images=len(training),
        test_images=len(test),
        data_digest=training.digest,
        machine=machine(device),
        versions=versions(),
        gradients=gradients_of(study, options.seeds[0], training),
        runs=entries,
    )
    runs = [_run(study, entry, options, training, test) for entry in entries]
    for entry, each in zip(entries, runs, strict=True):
        entry.epochs = each.history
    done, total = (
        sum(getattr(each.training, count) for each in runs) for count in ("number", "total")
    )
    with StepProgress(done=done, total=total) as progress:
        rest = [each.epochs(progress, stop) for each in runs]
        # Epoch by epoch, so that the curves can be compared at any time.
        for number in range(1, settings.epochs + 1):
            for entry, epochs in zip(entries, rest, strict=True):
                if len(entry.epochs) >= number:
                    continue
                progress.describe(f"{study.variants[entry.variant].title}, seed {entry.seed}")
                epoch = next(epochs, None)
                if epoch is None:
                    return False
                progress.epoch(epoch, settings.epochs, len(training))
                report.write(study, results, options.folder)
    report.write(study, results, options.folder)
    return True


def gradients_of(study: Comparison, seed: int, data: InMemory) -> dict[str, list[float]]:
    """Return the size of the gradient in each layer of each variant before its first step."""
    networks = {
        name: registry.create(study.classifier, weights=f"random:{seed}", **variant.arguments)
        for name, variant in study.variants.items()
    }
    return {name: gradients.sizes(each.module, data) for name, each in networks.items()}


def _run(
    study: Comparison, entry: Entry, options: StudyOptions, data: InMemory, test: InMemory
) -> Run:
    """Take up one variant with one seed, where it stands."""
    settings = options.settings(study.settings).model_copy(update={"seed": entry.seed})
    arguments = dict(study.variants[entry.variant].arguments)
    classifier = registry.create(study.classifier, weights=f"random:{entry.seed}", **arguments)
    training = Training(classifier, data, settings, device=options.use_machine())
    state = options.folder / ".state" / f"{entry.variant}-{entry.seed}.pt"
    # An evaluation in float32 would take a third of the time of an epoch.
    return Run(training, test, state, precision=training.precision)
