"""Whether a processor computes int8 exactly.

Without the VNNI instructions engines multiply unsigned by signed bytes with
`vpmaddubsw`, whose sums of two products are cut off at 16 bits: 255 x 127 twice is
twice as much as fits. EfficientNet-Lite0's logits were then off by half of their root
mean square. Weights whose pairs fit, as the export makes them for processors, lose
nothing. Others are computed as their graph says, in floating point between its
QuantizeLinear and DequantizeLinear: exactly, in one and a half times fp32's time.
"""

import platform
from functools import cache
from pathlib import Path

from foveate_runtime.bundle.manifest import VariantEntry

_PROCESSORS = Path("/proc/cpuinfo")
_VNNI = {"avx512_vnni", "avx_vnni"}


@cache
def adds_exactly() -> bool:
    """Return whether sums of products of bytes are exact here; where that is unknown, they are."""
    if platform.machine() not in {"x86_64", "AMD64"}:
        return True
    try:
        lines = _PROCESSORS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return True
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not flags or not _VNNI.isdisjoint(flags)


def in_integers(entry: VariantEntry) -> bool:
    """Return whether the engines may compute the int8 of a variant in integers here."""
    return adds_exactly() or entry.quantisation is None or entry.quantisation.pairs_fit
