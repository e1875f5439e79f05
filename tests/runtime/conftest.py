"""A bundle of colours."""

from ..colours import colours, colours_golden, golden_bundle, write_bundle
