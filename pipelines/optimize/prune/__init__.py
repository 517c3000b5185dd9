"""Which weights go: a module a method, and the shape of what is left."""
