"""Answers that are given again: their keys, and where they are kept."""
