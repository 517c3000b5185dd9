"""Fewer bits: what a scheme is in llm-compressor's terms, and how a checkpoint gets there."""
