"""The gRPC server of Foveate.

A transport passes a request to `rpc` (services and messages), and that to `engine`. The
engine has the picture decoded, takes a model from `repository`, and submits the picture to
`batching`, where a runner of foveate_runtime runs its batch. `process` is one server of
these; `workers` runs several.
"""
