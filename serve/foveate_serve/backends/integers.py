"""Whether a processor adds products of bytes exactly.

Without the VNNI instructions engines multiply unsigned by signed bytes with
`vpmaddubsw`, whose sums of two products are cut off at 16 bits: 255 x 127 twice is
twice as much as fits. int8 variants have weights of all eight bits, whose logits
were then off by half of their root mean square (EfficientNet-Lite0). So they are
computed as their graph says, in floating point between its QuantizeLinear and
DequantizeLinear: exactly, and no quicker than fp32.
"""

import platform
from functools import cache
from pathlib import Path

_PROCESSORS = Path("/proc/cpuinfo")
_VNNI = {"avx512_vnni", "avx_vnni"}


@cache
def adds_exactly() -> bool:
    """Tell whether sums of products of bytes are exact here; where nobody knows, they are."""
    if platform.machine() not in {"x86_64", "AMD64"}:
        return True
    try:
        lines = _PROCESSORS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return True
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not flags or not _VNNI.isdisjoint(flags)
