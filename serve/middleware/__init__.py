"""What stands between a client and the engine: pure ASGI, one file each."""
