"""How many replicas: pure functions of what was seen and what is remembered."""
