"""What is known of a processor's sums of bytes, and what follows for the engines."""

from collections.abc import Callable
from pathlib import Path

import pytest

from foveate_runtime.backends import integers
from foveate_runtime.backends.integers import adds_exactly, in_integers
from foveate_runtime.backends.onnxruntime.session import leave_to_floats
from foveate_runtime.backends.openvino.properties import properties
from foveate_runtime.bundle.manifest import Quantisation, VariantEntry


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], bool]:
    """Return what is said of a processor with such flags."""

    def ask(machine: str, text: str) -> bool:
        (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
        monkeypatch.setattr(integers.platform, "machine", lambda: machine)
        monkeypatch.setattr(integers, "_PROCESSORS", tmp_path / "cpuinfo")
        adds_exactly.cache_clear()
        return adds_exactly()

    yield ask
    adds_exactly.cache_clear()


@pytest.mark.parametrize(
    ("machine", "text", "exactly"),
    [
        ("x86_64", "flags\t\t: fpu avx2 avx512_vnni\n", True),
        ("x86_64", "model name : x\nflags : avx2 avx_vnni\n", True),
        ("x86_64", "flags : fpu avx2 avx512f\n", False),
        ("x86_64", "nothing of the kind\n", True),
        ("aarch64", "flags : fpu\n", True),
    ],
    ids=["avx512", "avx2-vnni", "neither", "unknown", "arm"],
)
def test_only_a_processor_with_vnni_adds_exactly(
    processor: Callable[[str, str], bool], machine: str, text: str, exactly: bool
) -> None:
    assert processor(machine, text) is exactly


def variant(*, pairs_fit: bool | None) -> VariantEntry:
    made = None if pairs_fit is None else Quantisation.model_construct(pairs_fit=pairs_fit)
    return VariantEntry.model_construct(name="int8", quantisation=made)


@pytest.mark.parametrize(
    ("adds", "pairs_fit", "expected"),
    [(True, False, True), (False, False, False), (False, True, True), (False, None, True)],
    ids=["vnni", "pairs-overflow", "pairs-fit", "no-int8"],
)
def test_int8_is_left_to_floats_where_it_would_not_be_exact(
    monkeypatch: pytest.MonkeyPatch, adds: bool, pairs_fit: bool | None, expected: bool
) -> None:
    monkeypatch.setattr(integers, "adds_exactly", lambda: adds)
    assert in_integers(variant(pairs_fit=pairs_fit)) is expected


class Options:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value


def test_what_the_engines_are_told() -> None:
    options = Options()
    leave_to_floats(options)
    assert options.entries == {"session.disable_quant_qdq": "1"}
    assert properties(1, integers=False)["LP_TRANSFORMS_MODE"] is False
    assert properties(1)["LP_TRANSFORMS_MODE"] is adds_exactly()
