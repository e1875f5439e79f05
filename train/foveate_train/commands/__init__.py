"""The subcommands that this distribution adds to `foveate`."""
