"""Bundles where people keep them: in buckets, on the Hugging Face Hub, in registries of images."""
