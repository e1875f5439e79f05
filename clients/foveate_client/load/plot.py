"""The distribution of latencies as a picture."""

from collections.abc import Mapping
from math import log10
from pathlib import Path

from foveate_client._exceptions import MissingDistributionError
from foveate_client.load.recorder import REQUIREMENT, Latencies

_POINTS = 400
_TICKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)


def save_plot(path: Path, curves: Mapping[str, Latencies]) -> None:
    """Draw each curve's latency by percentile, which are spaced by their number of nines.

    The suffix of `path` is the format: .png, .svg or .pdf. Raises
    MissingDistributionError where matplotlib is not installed, and OSError.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise MissingDistributionError("a plot", REQUIREMENT) from error
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    longest = max((len(latencies) for latencies in curves.values()), default=1)
    for name, latencies in curves.items():
        count = len(latencies)
        if not count:
            continue
        # Beyond 1 in `count` there is nothing to see.
        shares = [100 * (1 - count ** (-point / _POINTS)) for point in range(_POINTS + 1)]
        found = latencies.percentiles(shares)
        axes.plot(
            [_nines(share) for share in found],
            [1000 * seconds for seconds in found.values()],
            label=f"{name} ({count:,} requests)",
        )
    ticks = [tick for tick in _TICKS if _nines(tick) <= max(1.0, _nines(100 * (1 - 1 / longest)))]
    axes.set_xticks([_nines(tick) for tick in ticks], [f"{tick:g} %" for tick in ticks])
    axes.set_xlabel("requests answered within")
    axes.set_ylabel("milliseconds")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=120)


def _nines(share: float) -> float:
    """Return where a percentage lies on the axis: 90 at 1, 99 at 2, 99.9 at 3."""
    return -log10(1 - share / 100)
