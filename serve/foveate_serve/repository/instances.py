"""Several instances of one model: runners of the same bundle, each on cores of its own."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from foveate_runtime.backends.base import Runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.cores import Cores, pinned


def make_instances(
    make_runner: Callable[[Bundle], Runner], bundle: Bundle, cores: Sequence[Cores]
) -> list[Runner]:
    """Load a bundle once for each entry of `cores`, and return the runners.

    An engine starts its threads while it loads, and they inherit the cores of
    the thread that starts them. Raises BackendError, after it has closed the runners.
    """
    with ExitStack() as opened:
        runners = []
        for own in cores:
            with pinned(own):
                runners.append(opened.enter_context(make_runner(bundle)))
        opened.pop_all()
        return runners
