"""Version 1 of the Foveate services."""
