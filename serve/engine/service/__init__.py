"""A service that runs already, as an engine: its answers come over HTTP, and its load says how much may be asked."""
