"""Export of classifiers to bundles."""

# Before any module loads ONNX Runtime, whose telemetry this turns off.
import foveate_serve  # noqa: F401
