"""Which replica answers a request: decided from prefixes and load, without Ray."""
