"""`foveate train finetune`: teach a pretrained classifier the classes of an image folder."""

import itertools
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field

from foveate_train import checkpoint, distributed, recipe, registry
from foveate_train.classifier import Classifier
from foveate_train.data.folder import Corrupt, Photographs, scan
from foveate_train.finetuning import finetune
from foveate_train.fit import run_folder
from foveate_train.head import with_new_head
from foveate_train.options import As, Command, FitOptions
from foveate_train.settings import Settings


class FinetuneOptions(FitOptions):
    """Teach a pretrained classifier the classes of an image folder.

    Each class is a folder of pictures; its name is the class's label. A share of every
    class is held out to judge by. What is not given follows from the pictures.

        foveate train finetune photographs --model package:efficientnet_lite0 --out own
    """

    data: Annotated[Path, As("FOLDER", names=("data",))]
    """One folder of pictures for each class"""
    validation: Annotated[Path | None, As("FOLDER")] = None
    """The same classes, other pictures, to judge by"""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Without --validation, the share of each class to judge by"""
    corrupt: Corrupt = "fail"
    """What to do about a file that cannot be decoded"""
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode"""


def run(options: FinetuneOptions) -> int:
    """Train, write the checkpoint and print the result; 1 if interrupted.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    checkpoint.check_target(options.out)
    seed, device = recipe.check(options.given).seed, options.use_machine()
    training, judges = _photographs(options)
    said: set[str] = set()

    def make() -> tuple[Classifier, frozenset[str]]:
        classifier, head = with_new_head(
            options.model,
            training.classes,
            weights=options.weights,
            seed=seed,
            arguments=registry.parse_arguments(options.argument),
        )
        for assumed in classifier.assumptions.values():
            if assumed not in said:
                _say(f"weights: {assumed}")
                said.add(assumed)
        return classifier, head

    result = finetune(
        make,
        training,
        judges,
        options.given,
        options.out,
        workers=options.workers,
        device=device,
        say=_say,
        resume=options.resume,
        tensorboard=options.tensorboard,
    )
    return options.report(result)


def _say(line: str) -> None:
    if distributed.rank() == 0:
        print(line, file=sys.stderr)


def _photographs(options: FinetuneOptions) -> tuple[Photographs, Photographs | float]:
    """List the pictures to train on, and those to judge by or the share of them to hold out.

    What is left out is reported.

    The run's folder keeps the digests of those that could be decoded, so that going
    on with it decodes none of them again.
    """
    kept = run_folder(options.out) / "decoded.txt"
    whole = set(kept.read_text().split()) if options.resume and kept.is_file() else set()
    training = scan(options.data, options.corrupt, whole=whole)
    seen = [training]
    judges: Photographs | float = options.holdout
    if options.validation is not None:
        judges = scan(options.validation, options.corrupt, training.classes, whole=whole)
        seen.append(judges)
    for file, flaw in itertools.chain(*(each.corrupt.items() for each in seen)):
        _say(f"left out {file}: {flaw}")
    if distributed.rank() == 0:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text("\n".join(picture.digest for each in seen for picture in each.pictures))
    return training, judges


COMMAND = Command(
    name="finetune",
    options=FinetuneOptions,
    run=run,
    settings=[name for name in Settings.model_fields if name != "shift"],
    defaults={**recipe.DEFAULTS, **recipe.FOLLOWING},
)
