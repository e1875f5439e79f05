"""The Open Inference Protocol (v2): its messages and stubs."""
