"""Policy around the engine's API: one ASGI class a file."""
