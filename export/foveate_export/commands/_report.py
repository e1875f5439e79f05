"""What `foveate export` prints on stdout."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from foveate_export.anatomy.layer import Layer
from foveate_export.publish.bundle import Exported
from foveate_runtime.backends.tensorrt.sidecar import ENGINE_SUFFIX
from foveate_runtime.bundle.manifest import Accuracy, Parity, Quantisation


def print_layers(
    layers: Sequence[Layer],
    default: Sequence[Layer],
    left_out: Mapping[str, str],
    *,
    as_json: bool,
) -> None:
    """Print the layers that give feature maps, the default ones marked.

    How many modules are `left_out`, and why, goes to stderr.
    """
    if left_out:
        reasons = Counter(left_out.values()).most_common()
        counted = ", ".join(f"{count} ({reason})" for reason, count in reasons)
        print(f"{len(left_out)} left out: {counted}", file=sys.stderr)
    if as_json:
        print(
            json.dumps(
                [
                    {
                        "layer": layer.path,
                        "type": layer.kind,
                        "channels": layer.channels,
                        "height": layer.height,
                        "width": layer.width,
                        "layout": str(layer.layout),
                        "default": layer in default,
                    }
                    for layer in layers
                ],
                indent=2,
            )
        )
        return
    table = Table("layer", "type", "channels", "height", "width", "layout", "default", box=None)
    for layer in layers:
        mark = "*" if layer in default else ""
        numbers = (str(n) for n in (layer.channels, layer.height, layer.width))
        table.add_row(layer.path, layer.kind, *numbers, str(layer.layout), mark)
    Console(file=sys.stdout).print(table)


def print_exported(exported: Exported, *, original: str, as_json: bool) -> None:
    """Print where the bundle is and how far it lies from the original, which is named."""
    print(json.dumps(_as_json(exported), indent=2) if as_json else _as_text(exported, original))


def _as_json(exported: Exported) -> dict[str, object]:
    manifest = exported.manifest
    return {
        "path": str(exported.path),
        "name": manifest.name,
        "version": manifest.version,
        "bytes": exported.size,
        "note": exported.note,
        "scores": manifest.scores,
        "assumptions": manifest.assumptions,
        "variants": [variant.model_dump(mode="json") for variant in manifest.variants],
    }


def _as_text(exported: Exported, original: str) -> str:
    manifest = exported.manifest
    lines = [f"{exported.path}: {exported.size / 1e6:.1f} MB"]
    for variant in manifest.variants:
        lines.append(f"{variant.name}: {manifest.files[variant.file].size / 1e6:.1f} MB")
        if variant.quantisation:
            lines.append("  " + _quantisation_line(variant.quantisation))
        lines.append("  " + _parity_line(variant.parity, original))
        if variant.accuracy:
            lines.append("  " + _accuracy_line(variant.accuracy))
        if variant.trust:
            coverages = ", ".join(f"{each.coverage:g}" for each in variant.trust.sets)
            pictures = f"{variant.trust.images} pictures ({variant.trust.data})"
            lines.append(f"  calibrated on {pictures}, with prediction sets for {coverages}")
    lines += [
        f"{name}: {entry.size / 1e6:.1f} MB"
        for name, entry in manifest.files.items()
        if name.endswith(ENGINE_SUFFIX)
    ]
    by_layer: dict[str, list[str]] = {}
    for cam in manifest.cams:
        place = f"{cam.layer}, {cam.height} x {cam.width} cells"
        by_layer.setdefault(place, []).append(cam.method)
    lines += [f"maps of {place}: {', '.join(methods)}" for place, methods in by_layer.items()]
    lines += [f"{name}: {text}" for name, text in manifest.assumptions.items()]
    return "\n".join(lines)


def _parity_line(parity: Parity, original: str) -> str:
    worst = [f"logits {parity.logits_max_abs:.1e} (absolute)"]
    worst += [f"cam.{method} {error:.1e}" for method, error in parity.cams.items()]
    if parity.features:
        worst.append(f"feature maps {max(parity.features.values()):.1e}")
    return (
        f"largest difference from {original} on {parity.images} pictures ({parity.data}): "
        + ", ".join(worst)
        + f"; top-1 agrees on {parity.top1_agreement:.1%}"
    )


def _quantisation_line(quantisation: Quantisation) -> str:
    left = ", ".join(quantisation.float_layers) or "none"
    return (
        f"{quantisation.scheme}, calibrated on {quantisation.images} pictures "
        f"({quantisation.data}): top-1 agrees with fp32 on {quantisation.agreement:.1%} of them, "
        f"the logits' noise is {quantisation.sqnr:.1f} dB below them; layers left in float: {left}"
    )


def _accuracy_line(accuracy: Accuracy) -> str:
    return (
        f"accuracy on {accuracy.images} pictures ({accuracy.data}): "
        f"top-1 {accuracy.top1:.2%}, top-5 {accuracy.top5:.2%}"
    )
