"""Gradients as part of the graph: reverse-mode differentiation written in traceable operators.

ONNX has no automatic differentiation, and the backward operators of PyTorch
have no counterpart there. `trace` turns a network into a flat list of ATen
operators, and `TracedForward` pulls the cotangents of the logits back through
that list with the rules of `foveate_export.graph.vjp.rules`, which are made of the
same operators as forward passes are.
"""
