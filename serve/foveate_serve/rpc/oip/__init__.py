"""The Open Inference Protocol (version 2): its tensors, its descriptions and its service."""
