"""Client library of Foveate."""
