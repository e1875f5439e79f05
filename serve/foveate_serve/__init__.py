"""The gRPC server of Foveate."""
