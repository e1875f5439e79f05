"""gRPC over HTTP/2 on an event loop: what `grpc.aio.server` does, at a fifth of its price.

From a socket to a handler: `connection` takes frames apart and keeps the windows
of flow control, `headers` reads their header blocks, `messages` cuts a stream's
bytes into messages, `call` runs the handler of one call, and `server` listens.
Handlers, interceptors and contexts are those of `grpc.aio`, so that servicers
and generated code know no difference.
"""
