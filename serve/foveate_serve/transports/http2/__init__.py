"""gRPC over HTTP/2 on the event loop, for a part of the processor time of `grpc.aio`.

From a socket to a handler: `connection` takes frames apart and keeps the windows
of flow control, `headers` reads their header blocks, `messages` cuts a stream's
bytes into messages, `call` runs the handler of one call, and `server` listens.
"""
