"""An ordered chain of steps."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.errors import UserError
from conf.schema.step import StepKind, StepSpec


@dataclass(kw_only=True, slots=True)
class RecipeSpec:
    """Steps in the order in which they stand; each takes what the one before it made."""

    name: str = "custom"
    """What the result is called, after the model's name."""
    steps: dict[str, StepSpec] = field(default_factory=dict)
    """Each by a name of its own, as recipe.steps.NAME.kind=... and its keys; conf/recipe/ has the shipped ones."""

    def check(self) -> None:
        """Checks that each step can take what the one before it makes.

        Raises:
            UserError: when there is none, or one cannot.
        """
        if not self.steps:
            raise UserError("recipe.steps must hold a step: take a shipped choice, recipe=NAME")
        last: tuple[str, StepKind] | None = None
        for name, step in self.steps.items():
            if last is not None and last[1] in (StepKind.quantize, StepKind.export):
                raise UserError(
                    f"recipe.steps.{name} ({step.kind.value}) cannot come after recipe.steps.{last[0]}"
                    f" ({last[1].value}): it takes a checkpoint of plain weights; put quantize or export last"
                )
            last = name, step.kind
