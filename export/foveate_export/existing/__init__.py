"""Bundles of classifiers that are ONNX files already, made without torch.

`source` reads a file and finds its input, its logits and its layers, `head` the
pooling and the linear layer that a class activation map needs, `editing` writes
the graph that keeps the graph contract, `original` runs the file as it is, and
`exporter` compares the two and publishes the bundle.
"""

from foveate_export.existing.exporter import export_existing
from foveate_export.existing.source import Existing, open_existing

__all__ = ["Existing", "export_existing", "open_existing"]
