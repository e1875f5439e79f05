"""The models on disk: loading, versions, labels, and the loaded models that serve."""
