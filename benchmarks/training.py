"""How fast MNIST is learnt, and what the training loop costs above a bare one.

python -m benchmarks.training [--seeds N...] [--rounds N] [--threads N] [--out FILE]

Learning: `foveate:convnet4` is trained with two recipes, for speed and for
accuracy, once for each seed; counted are the seconds of training, without
reading the data and without evaluation, and the accuracy on the test set.

The loop: rounds of so many steps of `Training` alternate with rounds of a bare
loop of the same network, optimiser, schedule, precision and batch, whose pictures
lie normalised in memory. Compared are the CPU-seconds and the seconds of each
pair of rounds.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn import functional

from benchmarks import machine, pages
from foveate_train import registry
from foveate_train.data import mnist
from foveate_train.data.memory import InMemory, normalise
from foveate_train.loop import Training, compute_type, evaluate
from foveate_train.settings import Settings

PAGE = pages.DOCS / "train" / "training.md"
RESULTS = Path(__file__).parent / "results" / "training.json"
NETWORK = "foveate:convnet4"
RECIPES = {
    # In so few passes smoothed labels are worth a tenth of a point, and batches of 96
    # as much as those of 64 in less time.
    "fast": Settings(epochs=1, batch_size=96, label_smoothing=0.1),
    "accurate": Settings(epochs=3, batch_size=96, label_smoothing=0.1),
}
GOALS = {"fast": (0.992, 40.0), "accurate": (0.994, 150.0)}
STEPS = 40


def learn(name: str, seed: int, digits: InMemory, test: InMemory) -> dict[str, float | int | str]:
    """Train with one recipe and seed; return the accuracy and what it took."""
    settings = RECIPES[name].model_copy(update={"seed": seed})
    classifier = registry.create(NETWORK, weights=f"random:{seed}")
    data = InMemory(digits.images, digits.labels, classifier.input, shift=settings.shift)
    training = Training(classifier, data, settings)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in training.steps():
        pass
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    accuracy = evaluate(training.result.module, test)
    least, most = GOALS[name]
    return {
        "recipe": name,
        "seed": seed,
        "test_accuracy": accuracy,
        "seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "goal": f"{least:.1%} in {most:g} s",
        "reached": accuracy >= least and wall <= most,
    }


def compare_loops(digits: InMemory, rounds: int) -> dict[str, object]:
    """Alternate rounds of the two loops; return their rates and the ratios of their times."""
    settings = Settings(epochs=rounds + 1, shift=0)
    classifier = registry.create(NETWORK)
    data = InMemory(digits.images, digits.labels, classifier.input)
    loops: dict[str, Iterator[object]] = {
        "bare": bare_loop(data, settings),
        "training": Training(classifier, data, settings).steps(),
    }
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for number in range(rounds + 1):
        for name, loop in loops.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in islice(loop, STEPS):
                pass
            if number > 0:  # the first round warms up
                spent = time.perf_counter() - wall, time.process_time() - cpu
                samples[name].append(spent)
    ratios = [
        [ours[clock] / bare[clock] for bare, ours in zip(*samples.values(), strict=True)]
        for clock in (0, 1)
    ]
    return {
        "rounds": rounds,
        "steps_a_round": STEPS,
        "images_per_second": {
            name: round(STEPS * settings.batch_size / min(wall for wall, _ in spent))
            for name, spent in samples.items()
        },
        "time_over_bare": {
            name: [round(value, 3) for value in (min(r), statistics.median(r), max(r))]
            for name, r in zip(("wall", "cpu"), ratios, strict=True)
        },
    }


def bare_loop(data: InMemory, settings: Settings) -> Iterator[None]:
    """Train as one would write it down for this case alone."""
    classifier = registry.create(NETWORK)
    images, labels = normalise(data.images, classifier.input), data.labels
    module = classifier.module.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(
        module.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    steps = -(-len(images) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        settings.learning_rate,
        total_steps=steps * settings.epochs + 1,
        pct_start=settings.warm_up,
    )
    dtype = compute_type(settings, torch.device("cpu"))
    for _ in range(settings.epochs):
        for chosen in torch.randperm(len(images)).tensor_split(steps):
            with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
                loss = functional.cross_entropy(module(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            yield


def load() -> tuple[InMemory, InMemory]:
    """Return MNIST's training and test pictures."""
    spec = registry.create(NETWORK).input
    training, test = (
        InMemory(torch.from_numpy(images)[:, None], torch.from_numpy(labels), spec)
        for images, labels in map(mnist.load, ("train", "test"))
    )
    return training, test


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result that holds every recipe and the loop."""
    rows = []
    for recipe, (accuracy, seconds) in GOALS.items():
        epochs = RECIPES[recipe].epochs
        runs = [run for run in result["learning"] if run["recipe"] == recipe]
        rows.append(
            [
                f"{recipe}: {epochs} {'epoch' if epochs == 1 else 'epochs'}",
                ", ".join(f"{run['test_accuracy']:.2%}" for run in runs),
                ", ".join(f"{run['seconds']:.0f}" for run in runs),
                f"{accuracy:.1%} in {seconds:g} s",
            ]
        )
    loop = result["loop"]
    _, ratio, _ = loop["time_over_bare"]["wall"]
    rate = loop["images_per_second"]["training"]
    step = (
        f"A step takes {ratio:.3f} of the bare loop's time (aim 1.05; the median of "
        f"{loop['rounds']} rounds in turn): {rate:,} digits a second."
    )
    table = pages.table(["", "test accuracy, by seed", "seconds of training", "aim"], rows)
    return f"{table}\n\n{step}"


def main() -> None:
    """Parse the command line, measure, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=21, help="of the comparison; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    digits, test = load()
    console = Console(stderr=True)
    learnt = []
    for name in options.recipes:
        for seed in options.seeds:
            learnt.append(learn(name, seed, digits, test))
            console.print(learnt[-1])
    result = {
        "benchmark": "training",
        "network": NETWORK,
        "threads": options.threads,
        "precision": str(compute_type(Settings(), torch.device("cpu"))).removeprefix("torch."),
        "recipes": {
            name: RECIPES[name].model_dump(exclude_defaults=True) for name in options.recipes
        },
        "learning": learnt,
        "loop": compare_loops(digits, options.rounds) if options.rounds else None,
        "machine": machine.describe(),
    }
    machine.save(result, options.out)
    if options.out == RESULTS and options.rounds and set(options.recipes) == set(RECIPES):
        pages.write_part(PAGE, "training", page_part(result))
    console.print(result["loop"])
    console.print(f"written to {options.out}")


if __name__ == "__main__":
    main()
