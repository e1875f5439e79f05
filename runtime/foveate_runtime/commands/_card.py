"""The contents of a model card: the facts of a manifest, each with its place in it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import LABELS_FILE, MANIFEST_FILE, Manifest, VariantEntry

_LABELS = 8
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #202124; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; }
th, td { padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top; }
th { color: #5f6368; font-weight: normal; }
td:last-child { color: #5f6368; font-family: monospace; font-size: .85em; }
"""


@dataclass(frozen=True)
class Fact:
    """The name of a fact, its value, and its place in a file of the bundle."""

    name: str
    value: str
    source: str


@dataclass(frozen=True)
class Section:
    """Facts under a heading, and a text about them."""

    heading: str
    facts: Sequence[Fact]
    text: str = ""


def sections(bundle: Bundle) -> Iterator[Section]:
    """Yield the facts about the model in the bundle's files."""
    manifest = bundle.manifest
    yield Section("Model", list(_model(bundle)))
    for number, variant in enumerate(manifest.variants):
        yield Section(
            f"Variant {variant.name}", list(_variant(manifest, variant, f"/variants/{number}"))
        )
    if any(variant.trust for variant in manifest.variants):
        facts = [
            fact
            for number, variant in enumerate(manifest.variants)
            for fact in _trust(variant, f"/variants/{number}/trust")
        ]
        yield Section("How far an answer can be believed", [*facts, *_policy(manifest)], _PROMISE)
    else:
        yield Section("How far an answer can be believed", [], _NO_TRUST)
    yield Section("Class activation maps", list(_maps(manifest)), _no_maps(manifest))
    if manifest.faithfulness is not None:
        yield Section("What the maps are worth", list(_worth(manifest)), _WORTH)
    yield Section("Found or assumed by the export", list(_notes(manifest)))


_PROMISE = (
    "Of pictures like those of the calibration, drawn in the same way, a prediction set holds the "
    "right class at least as often as its coverage says, on average over pictures. Nothing is "
    "promised of a single class, of a single picture, or of pictures of another kind."
)
_NO_TRUST = "The bundle was not calibrated: foveate calibrate BUNDLE --data DIR does that."
_WORTH = (
    "Insertion: more is better. Deletion and average drop: less is better. Focus: the share of the "
    "map in the right quarter of a mosaic, a quarter by chance. A map that does not beat the "
    "Gaussian in the middle, which has not seen the picture, has shown nothing. Like its own: "
    "the rank correlation of a map with that of the same network whose last layers have random "
    "weights; a map that stays as it was does not depend on what the network has learned."
)


def as_markdown(bundle: Bundle) -> str:
    """Return the card's text in Markdown."""
    lines = [f"# {_title(bundle)}", ""]
    for section in sections(bundle):
        lines += [f"## {section.heading}", ""]
        if section.text:
            lines += [_plain(section.text), ""]
        if section.facts:
            lines += ["| | | from |", "|---|---|---|"]
            lines += [
                f"| {_plain(fact.name)} | {_plain(fact.value)} | `{fact.source}` |"
                for fact in section.facts
            ]
            lines.append("")
    return "\n".join(lines)


def as_html(bundle: Bundle) -> str:
    """Return the card as one HTML file that needs nothing else."""
    title = escape(_title(bundle))
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
    ]
    for section in sections(bundle):
        lines.append(f"<h2>{escape(section.heading)}</h2>")
        if section.text:
            lines.append(f"<p>{escape(section.text)}</p>")
        if section.facts:
            lines.append("<table><tr><th></th><th></th><th>from</th></tr>")
            lines += [
                f"<tr><td>{escape(fact.name)}</td><td>{escape(fact.value)}</td>"
                f"<td>{escape(fact.source)}</td></tr>"
                for fact in section.facts
            ]
            lines.append("</table>")
    return "\n".join([*lines, "</body></html>", ""])


def _title(bundle: Bundle) -> str:
    return f"{bundle.manifest.name}, version {bundle.manifest.version}"


def _at(pointer: str) -> str:
    """Return the place of a value: a JSON Pointer (RFC 6901) into the manifest."""
    return f"{MANIFEST_FILE}#{pointer}"


def _plain(text: str) -> str:
    """Return a text that a cell of a Markdown table shows as it is."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _key(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _model(bundle: Bundle) -> Iterator[Fact]:
    manifest = bundle.manifest
    spec = manifest.input
    named = ", ".join(bundle.labels[:_LABELS])
    more = ", ..." if len(bundle.labels) > _LABELS else ""
    yield Fact("classifier", manifest.classifier, _at("/classifier"))
    yield Fact("made", f"{manifest.created:%Y-%m-%d %H:%M} UTC", _at("/created"))
    yield Fact("parameters", f"{manifest.parameters:,}", _at("/parameters"))
    yield Fact("classes", f"{manifest.classes:,}: {named}{more}", LABELS_FILE)
    yield Fact("scores", manifest.scores, _at("/scores"))
    size = f"{spec.height} x {spec.width} x {spec.channels}, {spec.fit}, {spec.interpolation}"
    yield Fact("input", size, _at("/input"))
    for key, value in manifest.metadata.items():
        yield Fact(key, value, _at(f"/metadata/{_key(key)}"))
    yield Fact("SHA-256 of the manifest", bundle.digest, MANIFEST_FILE)


def _variant(manifest: Manifest, variant: VariantEntry, place: str) -> Iterator[Fact]:
    size = manifest.files[variant.file].size
    yield Fact("size", f"{size / 1e6:.1f} MB", _at(f"/files/{_key(variant.file)}/size"))
    parity = variant.parity
    yield Fact(
        "largest difference of a logit from the original",
        f"{parity.logits_max_abs:.2g} on {parity.images} pictures ({parity.data})",
        _at(f"{place}/parity/logits_max_abs"),
    )
    yield Fact(
        "same best class as the original",
        f"{parity.top1_agreement:.1%}",
        _at(f"{place}/parity/top1_agreement"),
    )
    if variant.accuracy is not None:
        scored = variant.accuracy
        data = f"of {scored.images:,} pictures ({scored.data})"
        yield Fact("top-1", f"{scored.top1:.2%} {data}", _at(f"{place}/accuracy/top1"))
        yield Fact("top-5", f"{scored.top5:.2%} {data}", _at(f"{place}/accuracy/top5"))


def _trust(variant: VariantEntry, place: str) -> Iterator[Fact]:
    trust = variant.trust
    if trust is None:
        return
    data = f"{trust.images:,} pictures ({trust.data}), {trust.created:%Y-%m-%d}"
    yield Fact(f"{variant.name}: calibrated on", data, _at(f"{place}/images"))
    yield Fact(f"{variant.name}: digest of the pictures", trust.digest, _at(f"{place}/digest"))
    if trust.temperatures:
        ends = dict.fromkeys(f"{find(trust.temperatures):.3g}" for find in (min, max))
        place_of = _at(f"{place}/temperatures")
        yield Fact(f"{variant.name}: temperature", " to ".join(ends), place_of)
    for number, each in enumerate(trust.sets):
        yield Fact(
            f"{variant.name}: coverage {each.coverage:g}",
            f"a class belongs to the set from a score of {1 - each.lac:.3g} on",
            _at(f"{place}/sets/{number}/lac"),
        )
    yield Fact(
        f"{variant.name}: unusual pictures are told by", trust.outlier, _at(f"{place}/outlier")
    )


def _policy(manifest: Manifest) -> Iterator[Fact]:
    for name, value in manifest.policy.model_dump(exclude_none=True).items():
        yield Fact(f"the model abstains: {name}", f"{value:g}", _at(f"/policy/{name}"))


def _maps(manifest: Manifest) -> Iterator[Fact]:
    errors = manifest.variants[0].parity.cams
    for number, cam in enumerate(manifest.cams):
        said = f"{cam.height} x {cam.width} cells of {cam.layer}"
        if cam.method in errors:
            said += f", differs from autograd by {errors[cam.method]:.2g}"
        if cam.completeness is not None:
            said += f"; its {cam.completeness.by} and the class's constant are the logit"
        yield Fact(cam.method, said, _at(f"/cams/{number}"))


def _no_maps(manifest: Manifest) -> str:
    return "" if manifest.cams else manifest.assumptions.get("cams", "The model has none.")


def _worth(manifest: Manifest) -> Iterator[Fact]:
    found = manifest.faithfulness
    if found is None:
        return
    yield Fact(
        "measured on", f"{found.images} pictures ({found.data})", _at("/faithfulness/images")
    )
    for name, worth in found.maps.items():
        place = f"/faithfulness/maps/{_key(name)}"
        for measure in ("insertion", "deletion", "average_drop", "focus"):
            mean = getattr(worth, measure)
            if mean is not None:
                value = f"{mean.mean:.3f} ± {mean.error:.3f}"
                told = measure.replace("_", " ")
                yield Fact(f"{name}: {told}", value, _at(f"{place}/{measure}/mean"))
        yield Fact(f"{name}: increase", f"{worth.increase:.1%}", _at(f"{place}/increase"))
    if (random := found.randomisation) is not None:
        for name, means in random.maps.items():
            for step, mean in enumerate(means):
                if mean is not None:
                    yield Fact(
                        f"{name}: like its own, {random.layers[step]} of {random.of} layers random",
                        f"{mean.mean:.3f} ± {mean.error:.3f}",
                        _at(f"/faithfulness/randomisation/maps/{_key(name)}/{step}/mean"),
                    )


def _notes(manifest: Manifest) -> Iterator[Fact]:
    for kind in ("assumptions", "versions"):
        for key, value in getattr(manifest, kind).items():
            yield Fact(key, value, _at(f"/{kind}/{_key(key)}"))
