"""What was said: a network hears digits by their spectrograms, and maps show when and how high."""

import wave
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch.nn import functional

from foveate_train import registry
from foveate_train.activation_maps import METHODS
from foveate_train.data.memory import InMemory
from foveate_train.drawing import COLOURS, new_figure, saving
from foveate_train.errors import CheckpointError
from foveate_train.progress import tracked
from foveate_train.recording import recorded
from foveate_train.settings import Settings
from foveate_train.studies import network
from foveate_train.studies.options import StudyOptions
from foveate_train.studies.pages import markdown_row
from foveate_train.studies.speech_words import (
    HOP,
    RATE,
    SECONDS,
    SIDE,
    WORDS,
    Spoken,
    band,
    spectrogram,
    spoken,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "speech"
SETTINGS = Settings(epochs=4, batch_size=32, learning_rate=2e-3, shift=0)
LAYER = "conv2"
METHOD = "layercam"
"""The map, by `foveate_train.activation_maps`, at `LAYER`: 27 x 58 cells."""

_WORDS = 1200
_TRAINED, _TESTED = 0, 1
"""Seeds of the speakers, whom the two sets do not share."""
# By the layers before and in it, the cell (i, j) of conv2 has its middle at the row
# 4 i + 11.5 and the column 2 j + 6.5 of the picture.
_FIRST, _STEP = (11.5, 6.5), (4, 2)
_TICKS = (250, 500, 1000, 2000, 4000)


def run(options: StudyOptions, stop: Event) -> bool:
    """Train the network, explain words of it, and write the page; False if interrupted."""
    options.use_machine()
    seed = network.only_seed(options)
    count = options.of(_WORDS)
    built = registry.create("foveate:spectrogram_cnn", weights=f"random:{seed}")
    classifier = replace(built, labels=tuple(WORDS))
    sets = []
    for words, speakers in ((count, _TRAINED), (max(count // 5, 200), _TESTED)):
        pictures = []
        for number in tracked(range(words), "words"):
            if stop.is_set():
                return False
            pictures.append(spectrogram(spoken(number, speakers).wave))
        labels = torch.arange(words) % len(WORDS)
        sets.append(InMemory(torch.stack(pictures)[:, None], labels, classifier.input))
    trained = network.fitted(classifier, network.Sets(*sets), SETTINGS, options, stop)
    if trained is None:
        return False
    network.keep(options.folder, trained)
    found, maps = explained(trained)
    test = [spoken(number, _TESTED) for number in range(len(found))]
    shares = [_shares(each, of_word) for each, of_word in zip(maps, test, strict=True)]
    right = (found == trained.test.labels).tolist()
    shown = [_first(trained.test.labels == digit, found == digit) for digit in range(len(WORDS))]
    for number in shown:
        _keep_word(options.folder / "words", test[number], trained.test.images[number, 0])
    network.write(
        options.folder,
        results={
            **trained.record,
            "right": {
                word: f"{sum(own)} of {len(own)}"
                for digit, word in enumerate(WORDS)
                if (own := right[digit :: len(WORDS)])
            },
            "confused": confused(found.tolist(), trained.test.labels.tolist()),
            "shares": {
                word: [
                    [round(float(value), 4) for value in row]
                    for row in torch.tensor(
                        [s for s, r in zip(shares[digit::10], right[digit::10], strict=True) if r]
                        or [[[0.0, 0.0]] * (len(sounds) + 1)]
                    ).mean(0)
                ]
                for digit, (word, sounds) in enumerate(WORDS.items())
            },
        },
        columns=["number", "word", "heard"],
        rows=(
            [number, classifier.labels[each.digit], classifier.labels[int(heard)]]
            for number, (each, heard) in enumerate(zip(test, found, strict=True))
        ),
        pictures={
            "words.png": saving(
                _figure([(test[n], trained.test.images[n, 0], maps[n]) for n in shown])
            )
        },
        page=page,
    )
    return True


def page(results: Mapping[str, Any]) -> str:
    """Return the page, all of whose figures are those of `results.json`."""
    rows = [markdown_row(["word", "right", "sounds: share of the map (share of the time)", "rest"])]
    rows.append(markdown_row(["---"] * 4))
    for word, sounds in WORDS.items():
        *of_sounds, (rest, _) = results["shares"][word]
        said = ", ".join(
            f"{sound} {share:.0%} ({time:.0%})"
            for sound, (share, time) in zip(sounds, of_sounds, strict=True)
        )
        rows.append(markdown_row([word, results["right"][word], said, f"{rest:.0%}"]))
    return network.page(
        NAME,
        results,
        nouns=("words", "words"),
        seconds=SECONDS,
        layer=LAYER,
        method=METHOD,
        confused=_confused(results["confused"]),
        words="\n".join(rows),
    )


def confused(found: Sequence[int], labels: Sequence[int]) -> dict[str, object] | None:
    """Return which word was most often heard as which other one, and how often; None if none."""
    wrong = Counter(
        (label, each) for label, each in zip(labels, found, strict=True) if label != each
    )
    if not wrong:
        return None
    ((label, each), times) = wrong.most_common(1)[0]
    names = tuple(WORDS)
    return {"word": names[label], "heard": names[each], "times": times}


def explained(trained: network.Trained) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what was heard of each test word, int64 [N], and its map, float32 [N, 27, 58]."""
    found, maps = [], []
    for batch in trained.test.all():
        with recorded(trained.classifier.module, [LAYER]) as seen:
            logits = trained.classifier.module(batch.images.requires_grad_())
        best = logits.argmax(1)
        (gradient,) = torch.autograd.grad(logits.gather(1, best[:, None]).sum(), seen[LAYER])
        found.append(best)
        maps.append(METHODS[METHOD](seen[LAYER].detach(), gradient))
    return torch.cat(found), torch.cat(maps)


def _confused(most: Mapping[str, Any] | None) -> str:
    if most is None:
        return "No word was taken for another."
    word, heard = most["word"], most["heard"]
    shared = [sound for sound in dict.fromkeys(WORDS[word]) if sound in WORDS[heard]]
    said = f"The most frequent mistake is {word}, heard as {heard}: {most['times']} times."
    return f"{said} Both hold {' and '.join(shared)}." if shared else said


def _shares(cells: torch.Tensor, word: Spoken) -> list[tuple[float, float]]:
    """Return for each sound its share of a map and its share of the time, and then of the rest."""
    times = (_FIRST[1] + _STEP[1] * torch.arange(cells.shape[1])) * HOP / RATE
    weight = cells.sum(0) / cells.sum().clamp(min=torch.finfo(torch.float32).tiny)
    ends = zip(word.begins, word.begins[1:], strict=False)
    found = [
        (float(weight[(times >= start) & (times < end)].sum()), (end - start) / SECONDS)
        for start, end in ends
    ]
    shares, lasts = zip(*found, strict=True)
    return [*found, (float(weight.sum()) - sum(shares), 1 - sum(lasts))]


def _first(of_digit: torch.Tensor, heard: torch.Tensor) -> int:
    """Return the first test word of a digit that was heard right, or else the first."""
    right = (of_digit & heard).nonzero()
    return int((right if len(right) else of_digit.nonzero())[0, 0])


def _keep_word(folder: Path, word: Spoken, picture: torch.Tensor) -> None:
    """Write a word as sound, 16 bits at 16 kHz, and as the picture that the network takes.

    Raises:
        CheckpointError: the disk refuses.
    """
    name = tuple(WORDS)[word.digit]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes((word.wave * 32767).to(torch.int16).numpy().tobytes())
        Image.fromarray(picture.numpy()).save(folder / f"{name}.png")
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error})") from error


def _figure(words: Sequence[tuple[Spoken, torch.Tensor, torch.Tensor]]) -> "Figure":
    """Draw the spectrogram of each word, and its map over it, by time and frequency."""
    figure = new_figure(10, 2.15 * (len(words) // 2), dpi=90)
    axes = figure.subplots(len(words) // 2, 4, sharex=True, sharey=True)
    for axis, (word, picture, cells) in zip(axes.reshape(-1, 2), words, strict=True):
        plain, mapped = axis
        for each in axis:
            each.imshow(picture.numpy(), cmap="gray", extent=(0, SECONDS, SIDE, 0), aspect="auto")
        (top, left), (height, width) = _FIRST, _STEP
        bottom, right = (
            first + step * count - step / 2
            for first, step, count in zip(_FIRST, _STEP, cells.shape, strict=True)
        )
        seconds = [(place * HOP / RATE) for place in (left - width / 2, right)]
        large = functional.interpolate(cells[None, None], (SIDE, SIDE), mode="bilinear")[0, 0]
        mapped.imshow(
            large.numpy(),
            cmap=COLOURS,
            # What does not count stays as it is.
            alpha=(1.5 * large / large.max()).clamp(0, 0.85).numpy(),
            extent=(*seconds, bottom, top - height / 2),
            aspect="auto",
        )
        plain.set_title(tuple(WORDS)[word.digit], fontsize=9, loc="left", pad=10)
        for each in axis:
            _sounds(each, word)
    for axis in axes[:, 0]:
        axis.set_yticks([band(each) for each in _TICKS], [f"{each / 1000:g}" for each in _TICKS])
        axis.set_ylabel("kHz", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("seconds", fontsize=8)
    for axis in axes.flat:
        axis.set_xlim(0, SECONDS)
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        axis.set_ylim(SIDE, 0)
        axis.tick_params(labelsize=7)
    return figure


def _sounds(axis: "Axes", word: Spoken) -> None:
    """Write the sounds of a word above its time."""
    for sound, start, end in zip(
        tuple(WORDS.values())[word.digit], word.begins, word.begins[1:], strict=False
    ):
        axis.axvline(start, color="#6cf", linewidth=0.5)
        axis.text((start + end) / 2, -3, sound, fontsize=6.5, ha="center", va="bottom")
    axis.axvline(word.begins[-1], color="#6cf", linewidth=0.5)
