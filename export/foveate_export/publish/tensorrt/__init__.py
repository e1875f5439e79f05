"""Engines of TensorRT and TensorRT-RTX, built from the variants of a bundle.

`builder` makes one engine of one graph, `target` says what for, and `engines`
puts them into a bundle.
"""
