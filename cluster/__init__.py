"""Local and real clusters."""
