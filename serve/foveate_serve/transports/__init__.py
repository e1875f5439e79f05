"""The servers of gRPC on a socket: grpcio's, or ours.

`base` says what a transport does, `grpcio` and `http2` do it, and `make` takes the
one that the settings name. Handlers, interceptors and contexts are those of
`grpc.aio` for both, so that nothing above a transport knows which one it is.
"""
