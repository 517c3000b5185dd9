"""gRPC: calls of the service Manta (serve/wire/api.proto) that become requests of the same app as over HTTP."""
