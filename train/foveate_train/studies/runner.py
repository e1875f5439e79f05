"""Runs a comparison: every variant with every seed, resumable at any step.

In the folder of the results:

    results.json, results.csv   what was measured, after every epoch
    README.md, curves.png       the page, drawn from results.json
    .state/                     where each run stands
"""

import itertools

from foveate_train import registry
from foveate_train.data.memory import InMemory
from foveate_train.environment import machine, versions
from foveate_train.fitting import Fitting, Keeper
from foveate_train.progress import StepProgress
from foveate_train.studies import report
from foveate_train.studies.comparison import Comparison
from foveate_train.studies.options import Options
from foveate_train.studies.results import Results, Run
from foveate_train.training import Training, compute_type


def run(study: Comparison, options: Options) -> bool:
    """Run a study, or what remains of it; return whether it is complete.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    settings = options.settings(study.settings)
    spec = registry.create(study.classifier).input
    training, test = options.digits(spec, shift=settings.shift)
    runs = list(itertools.product(study.variants, options.seeds))
    results = Results(
        study=study.name,
        settings=settings.model_dump(mode="json", exclude={"seed"}),
        precision=str(compute_type(settings, options.device)).removeprefix("torch."),
        training_images=len(training),
        test_images=len(test),
        data_digest=training.digest,
        machine=machine(options.device),
        versions=versions(),
        runs=[Run(variant=variant, seed=seed, epochs=[]) for variant, seed in runs],
    )
    fittings = [_fitting(study, entry, options, training, test) for entry in results.runs]
    for entry, fitting in zip(results.runs, fittings, strict=True):
        entry.epochs = fitting.history
    done, total = (
        sum(getattr(fitting.training, count) for fitting in fittings)
        for count in ("number", "total")
    )
    with StepProgress(options.console, done=done, total=total) as progress:
        rest = [fitting.epochs(progress, options.stop) for fitting in fittings]
        # Epoch by epoch, so that the curves can be compared at any time.
        for number in range(1, settings.epochs + 1):
            for entry, epochs in zip(results.runs, rest, strict=True):
                if len(entry.epochs) >= number:
                    continue
                title = f"{study.variants[entry.variant].title}, seed {entry.seed}"
                progress.describe(title)
                epoch = next(epochs, None)
                if epoch is None:
                    return False
                options.console.print(
                    f"{title}, epoch {number}/{settings.epochs}: loss {epoch.loss:.4f}, "
                    f"test accuracy {epoch.accuracy:.2%}",
                    highlight=False,
                )
                report.write(study, results, options.out)
    report.write(study, results, options.out)
    return True


def _fitting(
    study: Comparison, entry: Run, options: Options, data: InMemory, test: InMemory
) -> Fitting:
    """Take up one variant with one seed, where it stands."""
    settings = options.settings(study.settings).model_copy(update={"seed": entry.seed})
    arguments = dict(study.variants[entry.variant].arguments)
    classifier = registry.create(study.classifier, weights=f"random:{entry.seed}", **arguments)
    identity = {
        "classifier": classifier.name,
        "arguments": classifier.arguments,
        "settings": settings.model_dump(mode="json"),
        "data": data.digest,
    }
    keeper = Keeper(options.out / ".state" / f"{entry.variant}-{entry.seed}.pt", identity)
    training = Training(classifier, data, settings, device=options.device)
    # An evaluation in float32 would take a third of the time of an epoch.
    return Fitting(training, test, keeper, precision=training.precision)
