"""Types, defaults and checks of every configuration node."""
