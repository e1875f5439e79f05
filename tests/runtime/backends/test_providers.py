"""Which of ONNX Runtime's execution providers a device stands for. No GPU is used here."""

import onnxruntime
import pytest

from foveate_runtime.backends.base import BackendError
from foveate_runtime.backends.onnxruntime.providers import CPU, CUDA, TENSORRT, choose
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle


@pytest.fixture
def built_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ONNX Runtime say what its build for GPUs says."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])


@pytest.mark.parametrize(
    ("device", "tensorrt", "providers"),
    [
        ("cpu", False, [(CPU, {})]),
        ("cuda", False, [(CUDA, {"device_id": 0}), (CPU, {})]),
        ("cuda:3", False, [(CUDA, {"device_id": 3}), (CPU, {})]),
        ("cuda:3", True, [(TENSORRT, {"device_id": 3}), (CUDA, {"device_id": 3}), (CPU, {})]),
    ],
)
def test_a_device_stands_for_providers(
    built_for_gpus: None, device: str, tensorrt: bool, providers: list[object]
) -> None:
    assert choose(device, tensorrt=tensorrt) == providers


@pytest.mark.parametrize("backend", ["onnxruntime", "onnxruntime_tensorrt"])
def test_a_build_without_gpus_says_what_to_install(colours: Bundle, backend: str) -> None:
    with pytest.raises(BackendError, match=r'lacks: .*pip install "foveate-runtime\[gpu\]"'):
        create_runner(colours, backend=backend, device="cuda:0")


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("backend", ["onnxruntime", "onnxruntime_tensorrt"])
def test_a_provider_that_does_not_start_is_not_replaced_in_silence(
    colours: Bundle, built_for_gpus: None, backend: str
) -> None:
    # The session is real: it falls back to the CPU, as it does where a driver is missing.
    with pytest.raises(BackendError, match="ONNX Runtime cannot start"):
        create_runner(colours, backend=backend, device="cuda:0")
