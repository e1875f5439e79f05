"""The models on disk, and those of them that serve."""
