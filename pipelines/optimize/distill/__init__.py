"""How a student learns: what of, in which order, and from what it is told."""
