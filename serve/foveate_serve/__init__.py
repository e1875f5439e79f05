"""The gRPC server of Foveate.

A request goes from a transport and `rpc` (services and messages) to `engine`, which has its
picture decoded, takes a model from `repository` and waits for a batch of `batching`, which a
runner of foveate_runtime runs. `process` is one server of these, and `workers` are several.
"""
