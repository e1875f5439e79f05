"""The subcommands of `foveate` that this distribution brings."""
