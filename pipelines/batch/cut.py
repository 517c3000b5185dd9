"""Ends this process's pipeline from outside: Ray Data itself waits for as long as it takes to place an actor."""

from __future__ import annotations

import threading
from typing import Any, ClassVar


class CutOff(Exception):
    """The driver leaves."""


class Cut:
    """What Ray Data calls at each step of a pipeline (ray.data's ``ExecutionCallback``).

    An exception of it ends the pipeline: its actors, those too that wait for room, and the iterator over what comes
    out.
    """

    wanted: ClassVar[threading.Event] = threading.Event()
    """Of the class: Ray Data makes the objects. A driver has one pipeline."""

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing."""

    def on_execution_step(self, executor: Any) -> None:
        """Ends it where that is wanted.

        Raises:
            CutOff: then.
        """
        if self.wanted.is_set():
            raise CutOff("the driver leaves")

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing."""


def cuttable(context: Any) -> None:
    """Makes the pipelines that this process starts from now on end at `cut_off`.

    Args:
        context: Ray Data's.
    """
    Cut.wanted.clear()
    if Cut not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(Cut)


def cut_off() -> None:
    """Ends what runs."""
    Cut.wanted.set()
