"""The HTTP door: an ASGI app that answers HTTP by calling the gRPC services."""
