"""Links that restore a view: what is chosen, as the query of the page's address."""

from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from foveate_web.asking import Choice

_LONGEST = 256
"""Characters of a value; what is longer is not read."""


def query(picture: str, choices: Sequence[Choice]) -> str:
    """Return the query for a picture's name and what is chosen of the two models."""
    if not picture:
        return "?"
    pairs = [("picture", picture)]
    for choice, suffix in zip(choices, ("", "2"), strict=True):
        if choice.model:
            pairs += [(name + suffix, value) for name, value in _pairs(choice)]
    return f"?{urlencode(pairs)}"


def read(values: Mapping[str, str]) -> tuple[str, tuple[Choice, Choice]]:
    """Return the picture's name and the choices that a query names."""
    short = {name: value for name, value in values.items() if len(value) <= _LONGEST}
    return short.get("picture", ""), (_choice(short, ""), _choice(short, "2"))


def _pairs(choice: Choice) -> list[tuple[str, str]]:
    numbers = {"class": choice.class_id, "against": choice.against}
    return [
        ("model", choice.model),
        *((name, str(value)) for name, value in numbers.items() if value is not None),
        ("method", ",".join(choice.methods)),
        ("layer", str(choice.layer)),
        ("channel", str(choice.channel)),
    ]


def _choice(values: Mapping[str, str], suffix: str) -> Choice:
    def number(name: str) -> int | None:
        text = values.get(name + suffix, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None

    return Choice(
        model=values.get("model" + suffix, ""),
        class_id=number("class"),
        against=number("against"),
        methods=tuple(values.get("method" + suffix, "").split(",")),
        layer=number("layer") or 0,
        channel=number("channel") or 0,
    )
