"""Where to play: the policy network of AlphaGo learns the next move from records of games."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train import registry
from foveate_train.activation_maps import METHODS
from foveate_train.data.batches import Batch
from foveate_train.data.draws import generator
from foveate_train.data.memory import InMemory, normalise
from foveate_train.drawing import new_figure, saving
from foveate_train.errors import DataError
from foveate_train.progress import tracked
from foveate_train.recording import recorded
from foveate_train.settings import Settings
from foveate_train.studies import go_player, network
from foveate_train.studies.go_board import SIZE, index, near, planes, points
from foveate_train.studies.go_records import Turn, read, write
from foveate_train.studies.options import StudyOptions
from foveate_train.studies.pages import markdown_row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "go"
FILTERS = 32
SETTINGS = Settings(epochs=6, batch_size=64, learning_rate=3e-3, shift=0)
LAYER = "layers.1"
"""Whose activations the maps weigh: what the first convolution makes of the board."""
METHOD = "hirescam"
KINDS = {
    "captures": "takes stones",
    "saves": "saves a chain in atari",
    "ladder": "catches a chain in a ladder",
    "answers": "else, within two points of the last move",
    "elsewhere": "else",
}
"""What a move does, by name; each move is of the first kind that holds."""

_POSITIONS = 4800
_BEST = 5
# Early in a game there is little to be seen.
_FROM_MOVE = 40
_SHOWN = ("captures", "saves", "answers")


class Boards(InMemory):
    """Positions; in training, each batch is turned or mirrored in one of the board's eight ways."""

    def epoch(self, seed: int, epoch: int, batch_size: int, *, start: int = 0) -> Iterator[Batch]:
        """Give one epoch's batches from number `start` on, shuffled and turned."""
        batches = super().epoch(seed, epoch, batch_size, start=start)
        for number, batch in enumerate(batches, start):
            # The last number sets these draws apart from those of a shift.
            way = int(torch.randint(8, (), generator=generator(seed, epoch, number, 8)))
            images = turned(batch.images, way).contiguous(memory_format=torch.channels_last)
            moved = turned(torch.arange(SIZE * SIZE).view(SIZE, SIZE), way).flatten().argsort()
            yield batch._replace(images=images, labels=moved[batch.labels])


def run(options: StudyOptions, stop: Event) -> bool:
    """Train the network, explain moves of it, and write the page; False if interrupted."""
    seed = network.only_seed(options)
    folder = options.games
    if folder is None:
        folder = options.folder / "games"
        learnt = math.ceil((options.subset or _POSITIONS) / go_player.MOVES)
        for number in tracked(range(learnt + max(1, learnt // 5)), "games"):
            if stop.is_set():
                return False
            write(folder / f"{number:03}.sgf", go_player.game(number), player="a few rules")
    training, test = _turns(folder, options)
    classifier = registry.create("foveate:go_policy", weights=f"random:{seed}", filters=FILTERS)
    sets = network.Sets(_boards(training, classifier.input), _boards(test, classifier.input))
    trained = network.fitted(classifier, sets, SETTINGS, options, stop)
    if trained is None:
        return False
    network.keep(options.folder, trained)
    with torch.inference_mode():
        logits = torch.cat([trained.classifier.module(b.images) for b in trained.test.all()])
    ranks = (logits > logits.gather(1, trained.test.labels[:, None])).sum(1).tolist()
    kinds = [kind(image, turn) for image, turn in zip(trained.test.images, test, strict=True)]
    shown = explained_turns(test, kinds, ranks)
    network.write(
        options.folder,
        results={
            **trained.record,
            "games": None if options.games is None else len({t.record for t in training}),
            "test_games": len({turn.record for turn in test}),
            "right_in_five": sum(rank < _BEST for rank in ranks) / len(ranks),
            "chance": float((1 / trained.test.images[:, 46].sum((1, 2)).clamp(min=1)).mean()),
            "bound": None
            if options.games
            else float(np.mean([go_player.likeliest(turn.position) for turn in test])),
            "kinds": {name: _share(ranks, kinds, name) for name in KINDS},
            "explained": [
                {
                    "record": test[number].record,
                    "move": test[number].number,
                    "kind": kinds[number],
                    "point": classifier.labels[int(trained.test.labels[number])],
                    "best": [
                        {"point": classifier.labels[place], "probability": round(float(share), 4)}
                        for share, place in zip(*logits[number].softmax(0).topk(_BEST), strict=True)
                    ],
                }
                for number in shown
            ],
        },
        columns=["record", "move", "played", "kind", "rank"],
        rows=(
            [t.record, t.number, classifier.labels[index(t.point)], k, r + 1]
            for t, k, r in zip(test, kinds, ranks, strict=True)
        ),
        pictures={"moves.png": saving(_figure(trained, shown, test))},
        page=page,
    )
    return True


def page(results: Mapping[str, Any]) -> str:
    """Return the page, all of whose figures are those of `results.json`."""
    rows = [markdown_row(["the move", "in the test", "right", "in the best five"])]
    rows.append(markdown_row(["---"] * 4))
    for name, said in KINDS.items():
        kind = results["kinds"][name]
        shares = (
            f"{kind[key] / kind['moves']:.1%}" if kind["moves"] else "–"  # noqa: RUF001  none
            for key in ("right", "right_in_five")
        )
        rows.append(markdown_row([said, kind["moves"], *shares]))
    return network.page(
        NAME,
        results,
        nouns=("positions", "positions"),
        filters=results["arguments"]["filters"],
        layer=LAYER,
        source=_OWN
        if results["games"] is None
        else f"Records of a folder, {results['games']} of them to learn from.",
        test_games=results["test_games"],
        right=results["test_accuracy"],
        five=results["right_in_five"],
        chance=results["chance"],
        bound=""
        if results["bound"] is None
        else f" The player draws among moves that are equal to it, so that nobody can foretell "
        f"more than {results['bound']:.1%} of its moves.",
        kinds="\n".join(rows),
        explained="\n".join(_explained(each) for each in results["explained"]),
    )


_OWN = (
    "A player of a few rules played them against itself: it captures what it can, saves what it "
    "can, catches in a ladder what it can, and else answers near the last move. It draws among "
    "equal moves, and by another draw, which nothing on the board announces, it plays far from all "
    "stones now and then. The study writes its games as SGF to `games/`, and reads them there; "
    "`--games FOLDER` takes records of your own instead."
)


def turned(boards: torch.Tensor, way: int) -> torch.Tensor:
    """Turn boards [..., 19, 19] in one of eight ways: 0 to 3 quarters, from 4 on mirrored too."""
    boards = torch.rot90(boards, way % 4, (-2, -1))
    return boards.flip(-1) if way >= 4 else boards


def kind(image: torch.Tensor, turn: Turn) -> str:
    """Return what a move does, by the planes of its position, uint8 [48, 19, 19]."""
    row, column = divmod(index(turn.point), SIZE)
    of_move = image[:, row, column]
    last = turn.position.recent[0] if turn.position.recent else 0
    if of_move[20:28].any():
        return "captures"
    if of_move[45]:
        return "saves"
    if of_move[44]:
        return "ladder"
    return "answers" if turn.point & near(near(last)) else "elsewhere"


def explained_turns(test: Sequence[Turn], kinds: Sequence[str], ranks: Sequence[int]) -> list[int]:
    """Return the first move of some kinds, each, that was foretold in the midst of a game."""
    found: dict[str, int] = {}
    for number, (turn, each, rank) in enumerate(zip(test, kinds, ranks, strict=True)):
        if rank == 0 and turn.number >= _FROM_MOVE:
            found.setdefault(each, number)
    return [found[each] for each in _SHOWN if each in found] or [0]


def attribution(module: torch.nn.Module, image: torch.Tensor, place: int) -> torch.Tensor:
    """Return what speaks for a point and against it, float32 [19, 19].

    Args:
        module: the network.
        image: the input, float32 [1, 48, 19, 19].
        place: the number of the point.
    """
    with recorded(module, [LAYER]) as seen:
        logits = module(image.clone().requires_grad_())
        (gradient,) = torch.autograd.grad(logits[0, place], seen[LAYER])
    return METHODS[METHOD](seen[LAYER].detach(), gradient)[0]


def _turns(folder: Path, options: StudyOptions) -> tuple[list[Turn], list[Turn]]:
    """Read the records of a folder, as far as needed; the last sixth of the files is for the test.

    Raises:
        DataError: there are less than two, one cannot be read, or none has a move.
        SettingsError: there are less positions than asked for.
    """
    files = sorted(folder.glob("*.sgf"))
    if len(files) < 2:
        raise DataError(f"{folder}: holds less than two records .sgf")
    learnt = len(files) - max(1, len(files) // 6)
    count = options.subset or _POSITIONS
    training = _first(files[:learnt], count)
    test = _first(files[learnt:], max(count // 5, 200))
    if len(training) < 2 or not test:
        raise DataError(f"{folder}: holds less than two moves to learn, or none for the test")
    options.of(len(training))
    return training, test


def _first(files: Sequence[Path], count: int) -> list[Turn]:
    return list(islice(chain.from_iterable(map(read, files)), count))


def _boards(turns: Sequence[Turn], spec: InputSpec) -> Boards:
    images = np.stack([planes(turn.position) for turn in tracked(turns, "positions")])
    labels = torch.tensor([index(turn.point) for turn in turns])
    return Boards(torch.from_numpy(images), labels, spec)


def _share(ranks: Sequence[int], kinds: Sequence[str], kind: str) -> dict[str, int]:
    """Count the moves of a kind, and those that are the network's best or in its best five."""
    own = [rank for rank, each in zip(ranks, kinds, strict=True) if each == kind]
    return {
        "moves": len(own),
        "right": sum(rank == 0 for rank in own),
        "right_in_five": sum(rank < _BEST for rank in own),
    }


def _figure(trained: network.Trained, shown: Sequence[int], test: Sequence[Turn]) -> "Figure":
    """Draw a row of three boards for each position: stones, probabilities, and what counted."""
    figure = new_figure(9.6, 3.3 * len(shown))
    axes = figure.subplots(len(shown), 3, squeeze=False)
    module = trained.classifier.module
    for row, number in zip(axes, shown, strict=True):
        turn, label = test[number], int(trained.test.labels[number])
        image = normalise(trained.test.images[number : number + 1], trained.test.spec)
        with torch.inference_mode():
            shares = module(image)[0].softmax(0).view(SIZE, SIZE)
        values = attribution(module, image, label)
        most = float(values.abs().max())
        colour = "Black" if turn.is_black else "White"
        place = trained.classifier.labels[label]
        panels = (
            (f"{colour} plays {place} (ring)", None, "", 0.0, 1.0),
            (f"probability; {place}: {float(shares.max()):.0%}", shares, "YlOrRd", 0.0, None),
            (f"what speaks for {place} (red)", values, "RdBu_r", -most, most),
        )
        for axis, (title, drawn, colours, low, high) in zip(row, panels, strict=True):
            if drawn is not None:
                axis.imshow(drawn.numpy(), cmap=colours, vmin=low, vmax=high, zorder=0)
            _board(axis, turn, size=42 if drawn is None else 20)
            axis.set_title(title, fontsize=9)
    return figure


def _board(axis: "Axes", turn: Turn, *, size: int) -> None:
    """Draw a position: stones of this size, a dot on the last one, a ring where the move is."""
    axis.set_facecolor("#e3c48d")
    for line in range(SIZE):
        axis.plot([0, SIZE - 1], [line, line], color="#6b5531", linewidth=0.4, zorder=1)
        axis.plot([line, line], [0, SIZE - 1], color="#6b5531", linewidth=0.4, zorder=1)
    own, other = ("black", "white") if turn.is_black else ("white", "black")
    for stones, colour in ((turn.position.own, own), (turn.position.other, other)):
        rows, columns = _places(stones)
        axis.scatter(columns, rows, s=size, c=colour, edgecolors="black", linewidths=0.5, zorder=2)
    if turn.position.recent and turn.position.recent[0]:
        rows, columns = _places(turn.position.recent[0])
        axis.scatter(columns, rows, s=size / 5, color="#d22", linewidths=0, zorder=4)
    rows, columns = _places(turn.point)
    axis.scatter(
        columns, rows, s=60, facecolors="none", edgecolors="#08f", linewidths=1.4, zorder=4
    )
    axis.set_xlim(-0.7, SIZE - 0.3)
    axis.set_ylim(SIZE - 0.3, -0.7)
    axis.set_aspect("equal")
    axis.set_xticks(range(SIZE), "ABCDEFGHJKLMNOPQRST", fontsize=6)
    axis.set_yticks(range(SIZE), [str(SIZE - line) for line in range(SIZE)], fontsize=6)
    axis.tick_params(length=0)


def _places(those: int) -> tuple[list[int], list[int]]:
    """Return the rows and the columns of a set of points."""
    places = [divmod(index(point), SIZE) for point in points(those)]
    return [row for row, _ in places], [column for _, column in places]


def _explained(move: Mapping[str, Any]) -> str:
    """Tell of one move what it does and what the network thought of it."""
    best = ", ".join(f"{each['point']} {each['probability']:.1%}" for each in move["best"])
    return (
        f"- Move {move['move']} of `{move['record']}`, {move['point']}: {KINDS[move['kind']]}. "
        f"The network's best: {best}."
    )
