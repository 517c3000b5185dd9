"""The engine: one contract, used by batch jobs and by endpoints."""
