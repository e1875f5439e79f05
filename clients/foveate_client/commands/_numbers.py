"""Types of numeric arguments on the command line."""

import argparse


def positive(text: str) -> int:
    """Read a count."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def above_zero(text: str, unit: str = "") -> float:
    """Read a rate or another number that cannot be 0; an error names the unit."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0{unit}, not {text}")
    return number


def not_negative(text: str, unit: str = "") -> float:
    """Read a number that may be 0; an error names the unit."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must not be below 0{unit}, not {text}")
    return number


def seconds(text: str) -> float:
    """Read a time."""
    return above_zero(text, " seconds")


def seconds_or_none(text: str) -> float:
    """Read a time that may be 0."""
    return not_negative(text, " seconds")


def share(text: str) -> float:
    """Read a part of a whole."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text}")
    return number
