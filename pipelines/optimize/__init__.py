"""`manta optimize`: from a model to a cheaper one, step by step."""
