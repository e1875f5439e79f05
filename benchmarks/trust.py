"""What trust is worth: coverage, calibration, int8, and scores of unusual pictures.

    python -m benchmarks.trust --networks DIR (--fitted DIR | --keep) [--repository DIR]

The repository holds `mnist`, a convolutional classifier of digits, and `efficientnet_lite0` with
the variants fp32 and int8; `--networks` holds checkpoints of a ConvNeXt and a vision transformer
for digits, by `benchmarks.digit_networks`, which run in torch. `--fitted` are labelled photographs
to calibrate on, `--images` others.

Coverage: MNIST's 10,000 test digits are split a hundred times at random, into 1,000 that
calibrate and 9,000 that test. The share covered has the distribution of a binomial share of
9,000 whose probability is Beta(k, n + 1 - k), n = 1,000, k = ceil((n + 1) coverage); the band
is its 0.5th to 99.5th percentile.

Out-of-distribution scores: the area under the ROC curve between pictures like those of the
training and others, all drawn here or from scikit-image.
"""

import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import skimage
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import track

from benchmarks import machine, pages, script
from benchmarks.digit_networks import NETWORKS, Trained
from benchmarks.request_cost import read_pictures
from foveate_runtime.backends.base import Runner
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.folder import find_version
from foveate_runtime.bundle.manifest import InputSpec
from foveate_runtime.bundle.trust import Policy, SetThresholds, Trust
from foveate_runtime.evaluation.labelled import open_labelled
from foveate_runtime.evaluation.trusted import collect
from foveate_runtime.imaging.decode import ImageLimits
from foveate_runtime.imaging.transform import prepare
from foveate_runtime.options import option
from foveate_runtime.trust import outliers, sets, shares
from foveate_runtime.trust.answer import Assessor
from foveate_runtime.trust.calibration import calibrate
from foveate_runtime.trust.reliability import expected_calibration_error, reliability
from foveate_train.networks.digits import DIGITS as LABELS

RESULTS = Path(__file__).parent / "results" / "trust.json"
PAGE = Path(__file__).parents[1] / "docs" / "trust.md"
SPLITS, CALIBRATING = 100, 1000
COVERAGES = (0.9, 0.95, 0.99)
SKETCHES = 200
"""How many pictures of each kind are drawn."""
DIGITS = 2000


Logits = NDArray[Any]
Bools = NDArray[np.bool_]
Draw = Callable[[np.random.Generator], Image.Image]


def covered(members: Bools, targets: NDArray[np.int64]) -> float:
    """Return the share of the sets, bool [N, classes], that hold the class."""
    return float(members[np.arange(len(targets)), targets].mean())


def coverage(logits: Logits, present: Bools) -> list[dict[str, object]]:
    """Split the pictures `SPLITS` times, and tell how often the sets hold the class."""
    random = np.random.default_rng(0)
    found: dict[tuple[float, str], list[float]] = {}
    sizes: dict[tuple[float, str], list[float]] = {}
    for _ in range(SPLITS):
        order = random.permutation(len(logits))
        fitted, tested = order[:CALIBRATING], order[CALIBRATING:]
        targets = present[tested].argmax(1)
        for each in COVERAGES:
            thresholds = sets.fit(logits[fitted], present[fitted], each, "softmax")
            assert thresholds.raps is not None
            for method, members in (
                ("lac", sets.lac_members(logits[tested], thresholds, "softmax")),
                ("raps", sets.raps_members(logits[tested], thresholds.raps)),
            ):
                found.setdefault((each, method), []).append(covered(members, targets))
                sizes.setdefault((each, method), []).append(float(members.sum(1).mean()))
    rows: list[dict[str, object]] = []
    for (each, method), shares_covered in found.items():
        low, high = band(each, CALIBRATING, len(logits) - CALIBRATING)
        inside = [low <= share <= high for share in shares_covered]
        rows.append(
            {
                "coverage": each,
                "method": method,
                "mean": round(float(np.mean(shares_covered)), 5),
                "least": round(min(shares_covered), 5),
                "most": round(max(shares_covered), 5),
                "band": [round(low, 5), round(high, 5)],
                "inside": sum(inside),
                "mean_size": round(float(np.mean(sizes[each, method])), 3),
            }
        )
    return rows


def band(coverage: float, fitted: int, tested: int) -> tuple[float, float]:
    """Return between which shares 99 of 100 splits are expected to lie."""
    random, place = np.random.default_rng(1), sets.rank(fitted, coverage)
    drawn = random.binomial(tested, random.beta(place, fitted + 1 - place, 400_000)) / tested
    low, high = np.quantile(drawn, [0.005, 0.995])
    return float(low), float(high)


def calibration(fitted: Mapping[str, Any], tested: Mapping[str, Any]) -> dict[str, object]:
    """Calibrate each variant on some photographs and judge it on others; fp32's numbers on int8."""
    trusts = {
        name: calibrate(
            logits,
            fitted["present"],
            scores="softmax",
            coverages=(0.9, 0.95),
            data="fitted",
            digest=fitted["digest"],
        )
        for name, logits in fitted["logits"].items()
    }
    targets = tested["present"].argmax(1)
    found: dict[str, object] = {}
    for told, (variant, source) in {
        "fp32": ("fp32", "fp32"),
        "int8": ("int8", "int8"),
        "int8 with the numbers of fp32": ("int8", "fp32"),
    }.items():
        found[told] = judged(tested["logits"][variant], targets, trusts[source])
    return found


def judged(logits: Logits, targets: NDArray[np.int64], trust: Trust) -> dict[str, object]:
    """Tell what a calibration makes of other pictures' logits."""
    assessor = Assessor(trust, Policy(), "softmax")
    plain, after = shares.softmax(logits), assessor.confidence(logits)
    assert after is not None
    right = plain.argmax(1) == targets

    def error(confidence: NDArray[np.float64]) -> float:
        return round(expected_calibration_error(reliability(confidence.max(1), right)), 4)

    def part(thresholds: SetThresholds) -> dict[str, float]:
        members = assessor.members(logits, thresholds)
        return {
            "covered": covered(members, targets),
            "mean_size": round(float(members.sum(1).mean()), 3),
            "percentile_mean": round(float(assessor.percentile(logits).mean()), 1),
        }

    return {
        "top1": float(right.mean()),
        "temperature": round(trust.temperatures[0], 4),
        "ece_before": error(plain),
        "ece_after": error(after),
        "lac": {f"{each.coverage:g}": part(each) for each in trust.sets},
    }


def auroc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """Return the probability that a score of `outside` is above one of `inside`, ties as half."""
    ordered = np.sort(inside)
    below = np.searchsorted(ordered, outside, "left") + np.searchsorted(ordered, outside, "right")
    return float(below.mean() / (2 * len(inside)))


def outlier_table(
    fitted: Logits, inside: Logits, outside: Mapping[str, Logits]
) -> dict[str, dict[str, float]]:
    """Return the AUROC of each percentile, of a table of `fitted`, against each kind of picture."""
    known = outliers.tables(fitted, "softmax")
    scores = {
        name: partial(outliers.unusual, scores="softmax", by=name, known=known) for name in known
    }
    scores["max_softmax"] = lambda logits: shares.lack(logits, "softmax").min(1)
    return {
        kind: {
            name: round(auroc(score(inside), score(logits)), 4) for name, score in scores.items()
        }
        for kind, logits in outside.items()
    }


def letters(random: np.random.Generator) -> Image.Image:
    """Draw a letter that looks like no digit, white on black, as MNIST's digits are."""
    picture = Image.new("L", (28, 28))
    fonts = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVuS*.ttf"))
    font = ImageFont.truetype(str(fonts[random.integers(len(fonts))]), int(random.integers(18, 24)))
    letter = "ABCDEFGHJKMNPQRTUVWXYabdefhkmnrtuwxy"[random.integers(36)]
    ImageDraw.Draw(picture).text((14, 14), letter, fill=255, font=font, anchor="mm")
    return picture.rotate(float(random.uniform(-15, 15)))


def shapes(side: int, mode: str) -> Draw:
    """Return what draws lines, ellipses and boxes."""

    def draw(random: np.random.Generator) -> Image.Image:
        picture = Image.new(mode, (side, side))
        pen = ImageDraw.Draw(picture)
        for _ in range(random.integers(1, 5)):
            (x0, x1), (y0, y1) = np.sort(random.integers(0, side, (2, 2)), axis=1)
            colour = tuple(random.integers(80, 256, len(picture.getbands())).tolist())
            ink = colour if len(colour) > 1 else colour[0]
            width = max(1, side // 12)
            kind = random.integers(3)
            box = [int(x0), int(y0), int(x1), int(y1)]
            if kind == 0:
                pen.line(box, fill=ink, width=width)
            elif kind == 1:
                pen.ellipse(box, outline=ink, width=width)
            else:
                pen.rectangle(box, outline=ink, width=width)
        return picture

    return draw


def noise(side: int, channels: int) -> Draw:
    """Return what draws independent pixels."""
    shape = (side, side) if channels == 1 else (side, side, channels)
    return lambda random: Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))


def crops(names: tuple[str, ...], side: int) -> Draw:
    """Return what cuts squares out of pictures of scikit-image."""
    folder = Path(skimage.__file__).parent / "data"
    pictures = [Image.open(folder / name).convert("RGB") for name in names]

    def draw(random: np.random.Generator) -> Image.Image:
        picture = pictures[random.integers(len(pictures))]
        size = min(side, *picture.size)
        x = int(random.integers(picture.width - size + 1))
        y = int(random.integers(picture.height - size + 1))
        return picture.crop((x, y, x + size, y + size))

    return draw


def drawn(draw: Draw) -> Iterator[bytes]:
    """Yield `SKETCHES` pictures as PNG files."""
    random = np.random.default_rng(5)
    for _ in range(SKETCHES):
        buffer = io.BytesIO()
        draw(random).save(buffer, "PNG")
        yield buffer.getvalue()


def logits_of(runner: Runner, spec: InputSpec, files: Iterator[bytes]) -> Logits:
    """Classify pictures as the server does."""
    pixels = np.stack([prepare(data, spec, ImageLimits())[0] for data in files])
    batches = [pixels[i : i + 32] for i in range(0, len(pixels), 32)]
    return np.concatenate([runner.run({"image": x}, ["logits"])["logits"] for x in batches])


def opened(repository: Path, name: str) -> Bundle:
    """Open the newest version of a model."""
    return Bundle.open(find_version(repository, name))


def of_networks(digits: Bundle, networks: Mapping[str, Any], photographs: list[bytes]) -> Any:
    """Return the tables of outliers of networks of digits, and the share of digits got right.

    Each sees the same 3,000 test digits, drawn at random: the first half of them are easier.
    """
    spec, table, right = digits.manifest.input, {}, {}
    labelled = list(open_labelled("mnist", digits.labels))
    order = np.random.default_rng(0).permutation(len(labelled))[: CALIBRATING + DIGITS]
    targets = np.array([labelled[each][2] for each in order])
    for name, network in networks.items():
        kinds = {
            "digits": (labelled[each][1] for each in order),
            "letters": drawn(letters),
            "shapes": drawn(shapes(28, "L")),
            "noise": drawn(noise(28, 1)),
            "photographs, shrunken": iter(photographs),
        }
        found = {
            kind: logits_of(network, spec, files)
            for kind, files in track(kinds.items(), name, console=Console(stderr=True))
        }
        known = found.pop("digits")
        table[name] = outlier_table(known[:CALIBRATING], known[CALIBRATING:], found)
        right[name] = round(float((known.argmax(1) == targets).mean()), 4)
    return {"digits_right": right, "outliers": table}


def of_digits(digits: Bundle, photographs: list[bytes]) -> dict[str, Any]:
    """Return what the repository's network of digits is worth: coverage, and its outliers."""
    with create_runner(digits, variant="fp32", backend="onnxruntime") as runner:
        labelled = open_labelled("mnist", digits.labels)
        found = collect({"fp32": runner}, digits.manifest.input, labelled, len(digits.labels))
        tables = of_networks(digits, {"mnist": runner}, photographs)
    return {"coverage": coverage(found.logits["fp32"], found.present), **tables}


def of_photographs(photos: Bundle, fitted: Path, images: Path) -> dict[str, Any]:
    """Return what the network of photographs is worth: calibration, and its table of outliers."""
    spec, side = photos.manifest.input, photos.manifest.input.height
    both = {}
    names = [entry.name for entry in photos.manifest.variants]
    runners = {n: create_runner(photos, variant=n, backend="onnxruntime") for n in names}
    for told, folder in {"fitted": fitted, "tested": images}.items():
        data = open_labelled(str(folder), photos.labels)
        each = collect(runners, spec, data, photos.manifest.classes)
        both[told] = {"logits": each.logits, "present": each.present, "digest": each.digest}
    test_digits = [data for _, data, _ in open_labelled("mnist", LABELS, SKETCHES)]
    kinds = {
        "digits": iter(test_digits),
        "noise": drawn(noise(side, 3)),
        "textures": drawn(crops(("brick.png", "grass.png", "gravel.png"), side)),
        "drawings": drawn(shapes(side, "RGB")),
        "pages": drawn(crops(("page.png", "text.png"), side)),
        "microscope, retina, sky": drawn(
            crops(("ihc.png", "retina.jpg", "hubble_deep_field.jpg", "cell.png"), side)
        ),
    }
    outside = {
        kind: logits_of(runners["fp32"], spec, files)
        for kind, files in track(kinds.items(), "photographs", console=Console(stderr=True))
    }
    for runner in runners.values():
        runner.close()
    known, tested = (both[told]["logits"]["fp32"] for told in ("fitted", "tested"))
    return {
        "calibration": calibration(both["fitted"], both["tested"]),
        "photographs": {told: len(each["present"]) for told, each in both.items()},
        "outliers": {"efficientnet_lite0": outlier_table(known, tested, outside)},
    }


def kept(results: Path) -> dict[str, Any]:
    """Return what an earlier run has found of the repository's networks."""
    found = json.loads(results.read_text(encoding="utf-8"))
    table = {name: found["outliers"][name] for name in ("mnist", "efficientnet_lite0")}
    names = ("coverage", "calibration", "photographs")
    before = {"kept_from": found.get("kept_from", found["machine"])}
    return {**{name: found[name] for name in names}, **before, "outliers": table}


@dataclass(frozen=True, kw_only=True)
class Options(script.Photographs):
    """The command line."""

    networks: Path = option("the folder of `benchmarks.digit_networks`")
    fitted: Path = option("photographs to calibrate on", required="--keep" not in sys.argv)
    keep: bool = option("measure those of --networks alone; --out keeps those of the repository")


def main() -> None:
    """Measure, and write the results."""
    options = script.parse(Options, __doc__, out=RESULTS, page=PAGE)
    digits, photographs = opened(options.repository, "mnist"), read_pictures(options.images)
    if options.keep:
        found = kept(options.out)
    else:
        photos = opened(options.repository, "efficientnet_lite0")
        one, two = (
            of_digits(digits, photographs),
            of_photographs(photos, options.fitted, options.images),
        )
        found = one | two | {"outliers": one["outliers"] | two["outliers"]}
    networks = {name: Trained(options.networks / name) for name in NETWORKS}
    others = of_networks(digits, networks, photographs)
    right = found.get("digits_right", {}) | others["digits_right"]
    table = found["outliers"] | others["outliers"]
    worst = {
        name: min(row[name] for rows in table.values() for row in rows.values())
        for name in next(iter(table["mnist"].values()))
    }
    result = {"benchmark": "trust", **found, "digits_right": right}
    result |= {"outliers": table, "worst": worst, "machine": machine.describe()}
    script.finish(result, page_part, options)


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result."""
    covering = pages.table(
        ["coverage, sets", "mean of the splits", "least to most", "99 % band", "inside", "classes"],
        [
            [
                f"{row['coverage']:g}, `{row['method']}`",
                f"{row['mean']:.4f}",
                f"{row['least']:.4f} to {row['most']:.4f}",
                f"{row['band'][0]:.4f} to {row['band'][1]:.4f}",
                f"{row['inside']} of {SPLITS}",
                f"{row['mean_size']:.2f}",
            ]
            for row in result["coverage"]
        ],
    )
    judged_on = pages.table(
        ["", "top-1", "error before", "error after", "in the set for 0.9", "for 0.95"],
        [
            [
                told,
                f"{row['top1']:.0%}",
                f"{row['ece_before']:.1%}",
                f"{row['ece_after']:.1%}",
                *(f"{row['lac'][each]['covered']:.0%}" for each in ("0.9", "0.95")),
            ]
            for told, row in result["calibration"].items()
        ],
    )
    names = list(result["worst"])
    unusual = pages.table(
        ["pictures", *(f"`{name}`" for name in names)],
        [
            *(
                [f"`{model}`: {kind}", *(f"{row[name]:.3f}" for name in names)]
                for model, rows in result["outliers"].items()
                for kind, row in rows.items()
            ),
            ["the worst row", *(f"**{result['worst'][name]:.3f}**" for name in names)],
        ],
    )
    fitted, tested = (result["photographs"][told] for told in ("fitted", "tested"))
    digits = (
        f"MNIST's 10,000 test digits, split {SPLITS} times into {CALIBRATING:,} that calibrate and "
        "the others that test:"
    )
    photographs = (
        f"EfficientNet-Lite0, calibrated on {fitted} photographs and judged on {tested} others "
        "(expected calibration error; sets of `lac`):"
    )
    others = (
        "How well each score tells pictures of the training's kind from others (area under the ROC "
        "curve; 0.5 is chance, below it the others look more usual). Of MNIST's test digits "
        + ", ".join(f"`{name}` has {share:.1%}" for name, share in result["digits_right"].items())
        + " right:"
    )
    return "\n\n".join([digits, covering, photographs, judged_on, others, unusual])


if __name__ == "__main__":
    main()
