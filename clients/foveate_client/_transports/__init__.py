"""The transports of the clients: gRPC, or an engine in this process.

`base` is the interface. `sync`, `aio` and `repository` are for gRPC; they share `channel` and
`status`. `local` is for an engine in this process, and `threaded` makes it asynchronous.
"""
