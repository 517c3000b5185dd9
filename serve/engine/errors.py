"""Whose fault it is: the row's, the engine's, or the configuration's."""

from __future__ import annotations


class RequestRejected(Exception):
    """The row's fault: this request can never be answered. It becomes data, the others go on."""

    def __init__(self, error: str, message: str) -> None:
        """Args are the class of the error, such as ``prompt_too_long``, and a sentence."""
        super().__init__(error, message)
        self.error = error
        self.message = message

    def __str__(self) -> str:
        return f"{self.error}: {self.message}"


class EngineDead(Exception):
    """The engine's fault: it answers nothing any more. Its process must end so that the work goes elsewhere."""
