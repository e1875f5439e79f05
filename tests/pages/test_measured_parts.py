"""What pages say of a benchmark is what its results say."""

import json
import random
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpy
from benchmarks import (
    attacks,
    attention_variants,
    batch,
    comparison,
    determinism,
    drift,
    feature_cost,
    finetuning,
    fronts,
    http_cost,
    int8_networks,
    memory,
    overload,
    pages,
    pictures,
    quantisers,
    queueing,
    ray_batch,
    scale,
    stages,
    startup,
    throughput,
    training,
    transports,
    trust,
    trust_int8,
    variants,
)

WRITERS = {
    "attacks": attacks,
    "attention_variants": attention_variants,
    "batch": batch,
    "comparison": comparison,
    "determinism": determinism,
    "drift": drift,
    "feature_cost": feature_cost,
    "finetuning": finetuning,
    "fronts": fronts,
    "http_cost": http_cost,
    "int8_networks": int8_networks,
    "memory": memory,
    "overload": overload,
    "pictures": pictures,
    "quantisers": quantisers,
    "queueing": queueing,
    "ray_batch": ray_batch,
    "scale": scale,
    "stages": stages,
    "startup": startup,
    "throughput": throughput,
    "training": training,
    "transports": transports,
    "trust": trust,
    "trust_int8": trust_int8,
    "variants": variants,
}


@pytest.mark.parametrize("benchmark", WRITERS)
def test_the_part_is_that_of_the_results(benchmark: str) -> None:
    writer: Any = WRITERS[benchmark]
    page: Path = writer.PAGE
    page_part: Callable[[Mapping[str, Any]], str] = writer.page_part
    result = json.loads(writer.RESULTS.read_text(encoding="utf-8"))
    assert pages.part(page, benchmark) == page_part(result)


def test_a_part_is_replaced_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin, end = "<!-- Written by `python -m benchmarks.it`. -->", "<!-- Written until here. -->"
    page.write_text(f"before\n\n{begin}\n\nold\n\nolder\n\n{end}\nafter\n", encoding="utf-8")
    pages.write_part(page, "it", r"new \1")
    assert pages.part(page, "it") == r"new \1"
    assert page.read_text("utf-8") == f"before\n\n{begin}\n\nnew \\1\n\n{end}\nafter\n"
    with pytest.raises(AssertionError, match="has 0 parts of another"):
        pages.write_part(page, "another", "")


def test_determinism_finds_what_changes_and_how_much() -> None:
    logits = np.zeros((2, 2, 2, 5, 2, 3, 4), dtype=np.float32)
    logits[..., 0] = 1
    assert all(found["same_bits"] for found in determinism.compare(logits).values())
    # The second start, in its last batch of the largest size.
    logits[1, 0, 0, 4, 1, 2] = (1, 1.5, 0, 0)
    found = determinism.compare(logits)
    assert not any(change["same_bits"] for change in found.values())
    assert found["a new start"]["logits"] == 1.5
    assert found["all of it"]["best_changes"] == 1


def test_the_page_names_the_variants_that_leave_fp32_by_more_than_a_point() -> None:
    result = json.loads(attention_variants.RESULTS.read_text(encoding="utf-8"))
    text = attention_variants.PAGE.read_text(encoding="utf-8")
    (named,) = re.findall(r"More than a point away from fp32: (.+)\.$", text, re.MULTILINE)
    away = [
        f"`{name}` in {variant}"
        for name, network in result["networks"].items()
        for variant, row in network["variants"].items()
        if row["agreement"] < 0.99
    ]
    assert named == ("; ".join(away) or "none")


@pytest.mark.parametrize("exponential", [True, False])
@pytest.mark.parametrize("busy", [0.3, 0.6])
def test_the_simulation_of_one_queue_is_that_of_the_theory(exponential: bool, busy: float) -> None:
    chance = random.Random(1)  # noqa: S311 - a simulation
    times = [chance.expovariate(100) for _ in range(5_000)] if exponential else [0.01]
    # Without decoding the one lane is the whole of the server.
    work = queueing.Work(decode=[0.0], engine=[times])
    run = queueing.simulate(work, queueing.steadily(busy / work.seconds), 1)
    # Pollaczek and Khinchine: the variance over the square of the mean is 1, or 0.
    wanted = work.seconds * busy / (1 - busy) * (1 + exponential) / 2
    assert run.latencies.mean() - work.seconds == pytest.approx(wanted, rel=0.12)
    assert run.busy == pytest.approx(busy, rel=0.05)


def test_jobs_share_cores_by_their_weights() -> None:
    environment = simpy.Environment()
    cores = queueing.Shared(environment, 2)
    ended = {}

    def job(name: str, seconds: float, weight: float) -> Generator[simpy.Event, None, None]:
        yield cores.work(seconds, weight)
        ended[name] = environment.now

    environment.process(job("heavy", 1, 8))
    environment.process(job("light", 1, 1))
    environment.process(job("lighter", 1, 1))
    environment.run()
    # The heavy one has a core of its own and no more; the other two halve the second one
    # until it has ended, and have a core each from then on.
    assert ended == pytest.approx({"heavy": 1.0, "light": 1.5, "lighter": 1.5})


def test_a_picture_after_a_pause_takes_longer() -> None:
    work = queueing.Work(decode=[1.0], engine=[[1.0]], idle=(0.0, 4.0), cold=(1.0, 3.0))
    # The second comes while the first is in the engine, which has the larger share of the
    # core; the third comes two seconds after the second one's answer.
    found = queueing.simulate(work, [0.0, 1.5, 6.0], 1).latencies
    both = queueing.ENGINE + queueing.DECODER
    assert found == pytest.approx([1.5 + 0.5 * both / queueing.ENGINE, 2.5, 4.0])


def test_more_cores_can_be_busier() -> None:
    work = queueing.Work(decode=[0.002], engine=[[0.01 * n] for n in range(1, 9)], rest=[0.001])
    one, four = (
        np.percentile(
            queueing.simulate(work, queueing.steadily(0.7 * cores / work.seconds), cores).latencies,
            99,
        )
        for cores in (1, 4)
    )
    assert four < one


@pytest.mark.parametrize("shared", [False, True])
def test_processes_before_a_gpu_are_bound_by_what_is_scarce(
    monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    monkeypatch.setattr(fronts, "PICTURES", 12_000)
    gpu = replace(fronts.GPUS[0], launch=0.1, picture=0.001, change=0.0)

    def rate(processes: int, *, loop: float, decode: float, gpu: fronts.Gpu = gpu) -> float:
        host = fronts.Host(loop=loop, decode=decode, hand_over=0.0, take_over=0.0)
        return fronts.Simulation(host, gpu, processes, shared=shared).run()["pictures_a_second"]

    assert rate(1, loop=2, decode=1) == pytest.approx(1000 / 2, rel=0.03)
    assert rate(4, loop=2, decode=1) == pytest.approx(4000 / 2, rel=0.03)
    assert rate(16, loop=2, decode=2) == pytest.approx(1000 * fronts.CORES / 4, rel=0.05)
    slow = replace(gpu, launch=0.0, picture=2.0)
    assert rate(4, loop=1, decode=1, gpu=slow) == pytest.approx(1000 / 2, rel=0.03)
