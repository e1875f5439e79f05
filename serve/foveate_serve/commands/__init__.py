"""Subcommands of `foveate` beside `serve`."""
