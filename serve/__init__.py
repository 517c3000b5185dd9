"""Tokens from models."""
