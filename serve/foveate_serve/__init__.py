"""The gRPC server of Foveate.

A transport passes a request to `rpc` (services and messages), and that to `engine`. The
engine has the picture decoded, takes a model from `repository`, and submits the picture to
`batching`, where a runner of foveate_runtime runs its batch. `process` is one server of
these; `workers` runs several.
"""

import os

# Else the gRPC library writes the text of a client's GOAWAY into the log, with its line breaks.
# It reads this once, when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
