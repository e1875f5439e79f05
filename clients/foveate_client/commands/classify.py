"""`foveate classify`: classifies pictures, and shows where the classifier looked."""

import argparse
import json
import re
import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.bar import Bar
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from foveate_client._client import Client
from foveate_client._exceptions import CallError, FoveateError, ImageError, os_reason
from foveate_client._images import ImageInput
from foveate_client._models import Model
from foveate_client._options import CHECK_COPIES, OCCLUSION, Cam, ClassifyOptions, Features
from foveate_client._results import Classification, Trust
from foveate_client.batch.stream import stops_the_run
from foveate_client.commands._options import (
    SourceOptions,
    TrustOptions,
    argument,
    option,
    parse,
    parser_of,
)
from foveate_client.commands._pictures import PictureWriter, Written, drawn
from foveate_client.commands._shared import (
    complain,
    describe,
    open_client,
    require_coverage,
    trust_request,
    without_maps,
)
from foveate_client.commands._terminal import Show, find_show
from foveate_client.commands._words import SCORES, findings, opponent, score, trust_sentences

STDIN = "-"
BAR_WIDTH = 32


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


@dataclass(frozen=True, kw_only=True)
class Options(TrustOptions, SourceOptions):
    """The options of `foveate classify`."""

    images: tuple[str, ...] = argument("a picture's file; - reads standard input", metavar="IMAGE")
    model: str = option("needed where there are several", metavar="NAME", default="")
    version: str = option("the model's version", metavar="V", default="")
    top_k: int | None = option(
        "how many classes (default: 5, or all that reach --threshold)", metavar="K"
    )
    threshold: float | None = option(
        "only classes whose score is at least this, such as 0.5 where a picture may have "
        "several labels",
        metavar="SCORE",
    )
    cam: bool = option("explain the best class by a class activation map")
    cam_top: int | None = option("explain the N best classes; implies --cam", metavar="N")
    classes: tuple[int, ...] = option(
        "explain these classes, such as 281,285; implies --cam", metavar="IDS", type=_numbers
    )
    cam_method: str = option(
        "how to explain; any model has occlusion, by 25 masked copies; implies --cam",
        metavar="NAME",
        default="",
    )
    check: bool = option(
        f"try the map on {CHECK_COPIES} masked copies of the picture; implies --cam"
    )
    against: str | None = option(
        "explain what speaks for a class and not for this one: a label, a class id, or a "
        "rank such as #2; implies --cam",
        metavar="CLASS",
    )
    feature_maps: tuple[str, ...] = option(
        "return the feature map of this layer; may be repeated", metavar="LAYER"
    )
    channels: tuple[int, ...] = option(
        "the channels of the feature maps, such as 0,17 (default: all)",
        metavar="NUMBERS",
        type=_numbers,
    )
    json: bool = option("print one JSON object a line")
    out: Path | None = option("write the explanations as pictures and .npy files", metavar="DIR")
    show: bool = option(
        "do not show the explanations in the terminal", "--no-show", action="store_false"
    )


def main(arguments: Sequence[str]) -> int:
    """Run the subcommand and return its exit code."""
    parser = parser_of(
        Options,
        prog="foveate classify",
        description="Classify pictures, and show what the classifier looked at.",
        epilog="example: foveate classify cat.jpg --address localhost:50051 --cam",
    )
    options = parse(parser, Options, arguments)
    if options.images.count(STDIN) > 1:
        parser.error("standard input can be read only once")
    if options.channels and not options.feature_maps:
        parser.error("--channels needs --feature-maps")
    require_coverage(parser, options)
    try:
        writer = None if options.out is None else PictureWriter(options.out)
        with open_client(options) as client:
            return _classify(client, writer, options, parser)
    except FoveateError as error:
        complain(parser, describe(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        complain(parser, os_reason(error))
    return 1


def _classify(
    client: Client,
    writer: PictureWriter | None,
    options: Options,
    parser: argparse.ArgumentParser,
) -> int:
    images = [sys.stdin.buffer.read() if x == STDIN else Path(x) for x in options.images]
    console = Console(highlight=False)
    show = find_show(console) if _shows(options) else None
    failed = False
    model = _model(client, options)
    try:
        request = _request(options, model)
    except ValueError as error:
        parser.error(str(error))
    graph_map = "cam" in request and options.cam_method != OCCLUSION
    if model is not None and graph_map and (told := without_maps(model)):
        complain(parser, told)
        del request["cam"]
    labels = model.labels if model is not None else ()
    with closing(_results(client, images, request)) as results:
        for name, image, answer in zip(options.images, images, results, strict=True):
            outcome, written = _written(writer, name, image, answer)
            failed |= isinstance(outcome, FoveateError)
            if not isinstance(outcome, FoveateError):
                for warning in outcome.warnings:
                    complain(parser, f"{name}: warning: {warning}")
            if options.json:
                line = json.dumps(_record(name, outcome, written), ensure_ascii=False)
                print(line, flush=True)
            elif isinstance(outcome, FoveateError) and stops_the_run(outcome):
                # Every picture would fail with it, and it is printed once.
                complain(parser, describe(outcome))
                return 1
            elif isinstance(outcome, FoveateError):
                complain(parser, f"{name}: {describe(outcome)}")
            else:
                console.print(_table(name, outcome, written, labels), crop=False)
                if show is not None:
                    _show(console, show, image, outcome)
    return 1 if failed else 0


def _model(client: Client, options: Options) -> Model | None:
    """Return the model where the options need more than its answers."""
    if not (_explains(options) or (trust_request(options) and not options.json)):
        return None
    try:
        return client.model(options.model, options.version)
    except FoveateError:
        # Each picture will fail with the same error, which is reported then.
        return None


def _results(
    client: Client, images: Sequence[ImageInput], request: ClassifyOptions
) -> Generator[Classification | FoveateError, None, None]:
    """Yield the outcome of every picture; the error of a broken stream is that of all the rest."""
    answered = 0
    try:
        for result in client.classify_many(images, **request):
            yield result
            answered += 1
    except CallError as error:
        for _ in images[answered:]:
            yield error


def _shows(options: Options) -> bool:
    return options.show and not options.json and bool(_explains(options) or options.feature_maps)


def _show(console: Console, show: Show, image: ImageInput, result: Classification) -> None:
    try:
        pictures = drawn(image, result)
    except ImageError as error:
        console.print(Text(f"  {error}", "dim"))
        return
    for picture in pictures:
        console.print(show(picture))
    console.print()


def _written(
    writer: PictureWriter | None,
    name: str,
    image: ImageInput,
    outcome: Classification | FoveateError,
) -> tuple[Classification | FoveateError, Written | None]:
    """Write the explanations of `outcome`; a picture that cannot be drawn upon becomes an error."""
    if writer is None or isinstance(outcome, FoveateError):
        return outcome, None
    try:
        return outcome, writer.write(name, image, outcome)
    except ImageError as error:
        return error, None


def _request(options: Options, model: Model | None) -> ClassifyOptions:
    """Return the options of the request; raises ValueError where --against names no class."""
    request = ClassifyOptions(
        model=options.model,
        version=options.version,
        feature_maps=[Features(layer, options.channels) for layer in options.feature_maps],
    )
    if options.top_k is not None:
        request["top_k"] = options.top_k
    if options.threshold is not None:
        request["threshold"] = options.threshold
    if _explains(options):
        request["cam"] = Cam(
            method=options.cam_method,
            class_ids=options.classes,
            top=options.cam_top,
            against=_against(options.against, model),
            check=options.check,
        )
    if (trust := trust_request(options)) is not None:
        request["trust"] = trust
    return request


def _explains(options: Options) -> bool:
    return bool(
        options.cam
        or options.classes
        or options.cam_top is not None
        or options.cam_method
        or options.against is not None
        or options.check
    )


def _against(named: str | None, model: Model | None) -> int | None:
    """Return the class that `named` stands for: a label, an id, or a rank such as #2."""
    if named is None:
        return None
    if model is not None and model.labels.count(named) == 1:
        return model.labels.index(named)
    if re.fullmatch(r"\d{1,9}", named):
        return int(named)
    if re.fullmatch(r"#[1-9]\d{0,8}", named):
        return -int(named[1:])
    if model is None:
        return None  # each picture will fail with the model's error, which is reported then
    times = model.labels.count(named)
    why = f"stands for {times} classes" if times else "is no label of the model"
    raise ValueError(f"--against {named!r} {why}; give a label, a class id, or a rank such as #2")


def _record(
    name: str, outcome: Classification | FoveateError, written: Written | None
) -> dict[str, Any]:
    """Return the JSON object of one picture."""
    if isinstance(outcome, FoveateError):
        return {
            "image": name,
            "model": None,
            "version": None,
            "scores": None,
            "predictions": [],
            "trust": None,
            "cams": [],
            "feature_maps": [],
            "error": _error(outcome),
        }
    cam_paths = written.cams if written else [None] * len(outcome.cams)
    map_paths = written.feature_maps if written else [None] * len(outcome.feature_maps)
    return {
        "image": name,
        "model": outcome.model,
        "version": outcome.version,
        "scores": outcome.scores,
        "predictions": [
            {
                "class_id": x.class_id,
                "label": x.label,
                "score": x.score,
                "confidence": x.confidence,
            }
            for x in outcome.predictions
        ],
        "trust": None if outcome.trust is None else _trust_record(outcome.trust),
        "cams": [
            {
                "class_id": cam.class_id,
                "label": cam.label,
                "against": cam.against,
                "method": cam.method,
                "height": cam.array.shape[0],
                "width": cam.array.shape[1],
                "minimum": cam.minimum,
                "maximum": cam.maximum,
                "explained": cam.explained,
                "path": None if path is None else str(path),
                **({"check": asdict(cam.check)} if cam.check else {}),
            }
            for cam, path in zip(outcome.cams, cam_paths, strict=True)
        ],
        "feature_maps": [
            {
                "layer": features.layer,
                "channels": features.array.shape[0],
                "height": features.array.shape[1],
                "width": features.array.shape[2],
                "path": None if path is None else str(path),
            }
            for features, path in zip(outcome.feature_maps, map_paths, strict=True)
        ],
        **({"warnings": list(outcome.warnings)} if outcome.warnings else {}),
        "error": None,
    }


def _trust_record(trust: Trust) -> dict[str, Any]:
    return {
        "coverage": trust.coverage,
        "prediction_set": list(trust.prediction_set),
        "ood_percentile": trust.ood_percentile,
        "abstained": trust.abstained,
    }


def _error(error: FoveateError) -> dict[str, str]:
    if isinstance(error, CallError):
        return {"code": error.code, "reason": error.reason, "message": describe(error)}
    return {"code": "INVALID_ARGUMENT", "reason": "IMAGE_UNREADABLE", "message": str(error)}


def _table(
    name: str, result: Classification, written: Written | None, labels: Sequence[str]
) -> Group:
    """Return the output for one picture, for people."""
    ranking = Table.grid(padding=(0, 2))
    ranking.add_column(no_wrap=True, overflow="ellipsis", max_width=36)
    ranking.add_column(justify="right")
    ranking.add_column(width=BAR_WIDTH)
    for rank, prediction in enumerate(result.predictions):
        style = "bold" if rank == 0 else ""
        # A logit is no share, and has no bar.
        share = 0.0 if result.scores == "none" else prediction.score
        ranking.add_row(
            Text(f"  {prediction.label}", style),
            Text(score(prediction.score, result.scores), style),
            Bar(1, 0, share, width=BAR_WIDTH, color="green" if rank == 0 else "blue"),
        )
    heading = Text.assemble((name, "bold"), overflow="ignore", no_wrap=True)
    kind = f"; {SCORES[result.scores]}" if result.scores in SCORES else ""
    model = Text(f"  {result.model}, version {result.version}{kind}", "dim")
    none = [] if result.predictions else [Text("  no score reaches the threshold", "dim")]
    trust = [] if result.trust is None else _trust_lines(result, result.trust, labels)
    return Group(
        heading, model, *none, ranking, *trust, *_explanations(result, written, labels), Text()
    )


def _trust_lines(result: Classification, trust: Trust, labels: Sequence[str]) -> list[Text]:
    """Return sentences on the trust in an answer."""
    said = [Text(f"  {line}", "dim") for line in trust_sentences(result, trust, labels)]
    return [*said, Text("  the model abstains", "bold yellow")] if trust.abstained else said


def _explanations(
    result: Classification, written: Written | None, labels: Sequence[str]
) -> list[Text]:
    lines = [
        f"{cam.method} of {cam.label}{opponent(cam, labels)}: {findings(cam)}"
        for cam in result.cams
    ] + [
        f"{x.layer}: {x.array.shape[0]} x {x.array.shape[1]} x {x.array.shape[2]}, "
        f"values {x.minimum:.3g} to {x.maximum:.3g}"
        for x in result.feature_maps
    ]
    if written is None:
        return [Text(f"  {line}", "dim") for line in lines]
    return [
        # Never wrapped, so that a path can be copied.
        Text.assemble((f"  {line}\n", "dim"), f"    {path}", overflow="ignore", no_wrap=True)
        for line, path in zip(lines, (*written.cams, *written.feature_maps), strict=True)
    ]
