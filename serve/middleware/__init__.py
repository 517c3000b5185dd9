"""What stands between a client and vLLM's own app: pure ASGI classes, one a file."""
