"""Bounded jobs."""
