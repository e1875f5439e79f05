"""torch.compile over a bundle's graph: the same answers, and a clear word without a compiler."""

import pytest

from foveate_runtime.backends.base import BackendError
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.golden import Golden


def test_it_answers_as_the_mathematics_does_and_compiles_once(
    colours: Bundle, colours_golden: Golden
) -> None:
    with create_runner(colours, backend="torch_compile", threads=1) as runner:
        assert runner.build_seconds == 0
        errors = colours_golden.errors(runner.run, "largest")
        assert errors.keys() == {"logits", "cam.cam", "features.planes"}
        assert max(errors.values()) < 1e-6
        built = runner.build_seconds
        assert built is not None
        assert built > 0
        backwards = ["features.planes", "cam.cam", "logits"]
        assert list(runner.run(colours_golden.inputs, backwards)) == backwards
        assert runner.build_seconds == built
        with pytest.raises(BackendError, match="does not tell what its operators take"):
            runner.profile(colours_golden.inputs, backwards, warm_up=0, runs=1)


def test_without_a_compiler_it_says_so(colours: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BackendError, match=r"a C\+\+ compiler, and there is no 'no-such"):
        create_runner(colours, backend="torch_compile")
