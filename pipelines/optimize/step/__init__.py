"""The steps. A module is named for its kind and has `run`: from a `StepTask` to what it measured."""
