"""A target for libFuzzer by way of Atheris, which keeps the inputs that reach new branches."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

SECONDS_FOR_ONE = 10
"""An input that takes longer is a finding."""

RESIDENT_MEBIBYTES = 2048
"""A process that grows beyond this is a finding."""

INPUT_BYTES = 64 << 10


def fuzz(target: Callable[[bytes], None], examples: Iterable[bytes]) -> None:
    """Call `target` with changed examples; does not return.

    The command line gives a folder for the corpus and for findings, the number of
    calls (-1: no limit), the seconds (0: no limit) and the seed. An exception of `target` is
    a finding: its input is written into the folder, and the exit code is not 0.
    """
    folder = Path(sys.argv[1])
    runs, seconds, seed = sys.argv[2:5]
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, example in enumerate(examples):
        (corpus / f"example-{number}").write_bytes(example)
    options = {
        "runs": runs,
        "max_total_time": seconds,
        "seed": seed,
        "timeout": SECONDS_FOR_ONE,
        "rss_limit_mb": RESIDENT_MEBIBYTES,
        "max_len": INPUT_BYTES,
        "artifact_prefix": f"{folder}/found-",
        "print_final_stats": 1,
    }
    arguments = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], target)
    atheris.Fuzz()
