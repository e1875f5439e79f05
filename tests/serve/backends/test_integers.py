"""What is known of a processor's sums of bytes, and what follows for the engines."""

from collections.abc import Callable
from pathlib import Path

import pytest

from foveate_serve.backends import integers
from foveate_serve.backends.integers import adds_exactly
from foveate_serve.backends.onnxruntime import exact
from foveate_serve.backends.openvino import properties as openvino_properties


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


class Options:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value


@pytest.mark.parametrize("exactly", [True, False])
def test_the_engines_leave_int8_to_floats_where_it_is_not_exact(
    monkeypatch: pytest.MonkeyPatch, exactly: bool
) -> None:
    for module in (exact, openvino_properties):
        monkeypatch.setattr(module, "adds_exactly", lambda: exactly)
    options = Options()
    exact.keep_exact(options)
    assert options.entries == ({} if exactly else {"session.disable_quant_qdq": "1"})
    assert openvino_properties.properties(1)["LP_TRANSFORMS_MODE"] is exactly
