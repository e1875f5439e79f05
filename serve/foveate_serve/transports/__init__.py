"""The servers of gRPC on a socket: grpcio's, or ours.

`base` defines a transport, `grpcio` and `http2` are two, and `make` returns the one that
the settings name. Handlers, interceptors and contexts are those of
`grpc.aio` for both, so that nothing above a transport depends on which one it is.
"""
