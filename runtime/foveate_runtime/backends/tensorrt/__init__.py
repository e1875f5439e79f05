"""TensorRT and TensorRT-RTX: two flavours of one interface, run by one runner."""
