"""Bundles, their variants and their engines, published whole or not at all."""
