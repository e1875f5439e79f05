"""Bundles of classifiers that are ONNX files already, made without torch.

`source` reads a file and finds its input and its logits, `head` the pooling and
the linear layer that a class activation map needs, `original` runs the file as it
is, `places` finds the nodes that return maps, `editing` writes the graph that keeps
the graph contract, and `exporter` compares the two and publishes the bundle.
"""

from foveate_export.existing.exporter import export_existing
from foveate_export.existing.places import open_existing
from foveate_export.existing.source import Existing

__all__ = ["Existing", "export_existing", "open_existing"]
