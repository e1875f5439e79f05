"""Export of classifiers to bundles."""

# Before any module loads ONNX Runtime, whose telemetry this turns off.
import foveate_runtime  # noqa: F401
