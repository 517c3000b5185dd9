"""Batches over HTTP: what clients send is kept in a folder, and run as jobs of `manta batch`."""
