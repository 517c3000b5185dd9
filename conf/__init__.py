"""Choices (YAML) and their types. Imports the standard library, omegaconf and hydra only."""
