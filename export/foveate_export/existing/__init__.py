"""Bundles of classifiers that are ONNX files already, made without torch.

`source` reads a file and finds its input, its logits and its layers, `end` the
operator at its end, `head` the pooling and the linear layer that a class
activation map needs, `file` runs it as it is, `places` finds the nodes that return
maps, `editing` writes the graph that keeps the graph contract, `original` gives the
answers that this is judged by, and `exporter` compares the two and publishes the bundle.
"""

from foveate_export.existing.exporter import export_existing
from foveate_export.existing.places import open_existing
from foveate_export.existing.source import Existing

__all__ = ["Existing", "export_existing", "open_existing"]
