"""A benchmark's results made up, and a folder of labelled colours."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate_bench.document import Model, Report, Settings
from foveate_bench.machine import Machine
from foveate_bench.results import (
    Accuracy,
    Case,
    Latency,
    Measurement,
    OutputKind,
    Refusal,
    find_ties,
)

from ..colours import colours, colours_golden, golden_bundle, write_bundle

CPU_ONLY = Machine(
    processor="a processor",
    cores=2,
    memory_gib=8,
    system="Linux",
    python="3.11",
    packages={"onnxruntime": "1.0"},
)
RGB = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Three pictures, one a colour, and one of green that stands under blue."""
    folder = tmp_path / "labelled"
    for label, file, colour in (
        *((name, "right.png", colour) for name, colour in RGB.items()),
        ("blue", "wrong.png", RGB["green"]),
    ):
        (folder / label).mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8, 3), colour, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / label / file)
    return folder


def measurement(
    medians: tuple[float, ...],
    *,
    backend: str = "onnxruntime",
    variant: str = "fp32",
    outputs: OutputKind = "logits",
    batch: int = 1,
    threads: int = 2,
) -> Measurement:
    """Make up a measurement of one run a round."""
    seconds = [median / 1000 for median in medians]
    return Measurement(
        case=Case(
            model="colours",
            version=1,
            variant=variant,
            backend=backend,
            device="cpu",
            threads=threads,
            batch=batch,
            outputs=outputs,
        ),
        latency=Latency.of(seconds),
        round_medians_ms=medians,
        images_per_second=batch * len(seconds) / sum(seconds),
        cpu_seconds_per_image=0.001,
        peak_memory_bytes=50_000_000,
        load_seconds=0.25,
        first_request_seconds=0.5,
    )


@pytest.fixture
def make_report() -> Callable[..., Report]:
    def make(*measurements: Measurement, complete: bool = True, accuracy: bool = True) -> Report:
        scored = dict.fromkeys((m.case.variant, m.case.backend) for m in measurements if accuracy)
        return Report(
            created=datetime(2026, 1, 2, tzinfo=UTC),
            complete=complete,
            load_average=0.5,
            machine=CPU_ONLY,
            settings=Settings(batches=(1, 8), outputs=("logits", "cam"), rounds=3, seconds=0.5),
            models=(
                Model(
                    name="colours",
                    version=1,
                    classifier="tests:colours",
                    parameters=3,
                    height=8,
                    width=8,
                    channels=3,
                    classes=3,
                    pictures="4 pictures of labelled",
                    file_bytes={"fp32": 1000},
                ),
            ),
            measurements=measurements,
            accuracies=tuple(
                Accuracy(
                    model="colours",
                    version=1,
                    variant=variant,
                    backend=backend,
                    device="cpu",
                    data="labelled",
                    images=4,
                    top1=0.75,
                    top5=1,
                )
                for variant, backend in scored
            ),
            ties=find_ties(measurements),
            refusals=(
                Refusal(what="abacus", reason="no beads | no frame", remedy="pip install beads"),
            ),
        )

    return make
