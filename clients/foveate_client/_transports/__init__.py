"""How calls reach an engine: over gRPC, or in this process.

`base` is the interface. `sync`, `aio` and `repository` carry calls over gRPC, by what `channel`
and `status` share; `local` carries them within the process, and `threaded` makes it asynchronous.
"""
