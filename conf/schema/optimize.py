"""The root of `manta optimize`."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.errors import UserError
from conf.schema.cluster import ClusterSpec
from conf.schema.data import DataSpec
from conf.schema.model import ModelSpec
from conf.schema.recipe import RecipeSpec


@dataclass(kw_only=True, slots=True)
class ExamplesSpec:
    """The rows that steps calibrate on or learn from."""

    rows: int = 512
    """Rows taken at most, spread evenly over the input."""
    max_tokens: int = 2048
    """Tokens of a row at most, prompt and answer together; longer rows are left out."""
    min_rows: int = 16
    """Fewer usable rows are refused: scales found on so little mean nothing."""

    def __post_init__(self) -> None:
        for key in ("rows", "max_tokens", "min_rows"):
            if getattr(self, key) < 1:
                raise UserError(f"examples.{key} must be >= 1, got {getattr(self, key)}")


@dataclass(kw_only=True, slots=True)
class ArtifactSpec:
    """Where the cheaper model goes."""

    path: str | None = None
    """A local folder; null is out/NAME under the current one."""
    store: str | None = None
    """Where the steps' results are kept, so that none runs twice; null is PATH/_manta/steps."""
    overwrite: bool = False
    """Replace another recipe's result that lies in the folder."""
    register: bool = True
    """Write model/NAME.yaml to your own configuration (MANTA_CONF), so that model=NAME finds it."""


@dataclass(kw_only=True, slots=True)
class OptimizeJob:
    """A model and a recipe in, a cheaper model out."""

    name: str = ""
    """What the result is called; MODEL-RECIPE where empty."""
    model: ModelSpec = field(default_factory=ModelSpec)
    recipe: RecipeSpec = field(default_factory=RecipeSpec)
    data: DataSpec = field(default_factory=DataSpec)
    examples: ExamplesSpec = field(default_factory=ExamplesSpec)
    output: ArtifactSpec = field(default_factory=ArtifactSpec)
    cluster: ClusterSpec = field(default_factory=ClusterSpec)
    seed: int = 0
    """Of what is drawn: the order of rows, a student's dropped weights."""
    dry_run: bool = False
    """Run nothing: print the steps, and which of them are done."""

    def __post_init__(self) -> None:
        if self.name and not all(sign.isalnum() or sign in "._-" for sign in self.name):
            raise UserError(f"name must be letters, digits, '.', '_' and '-', got '{self.name}'")

    @property
    def title(self) -> str:
        """The result's name."""
        return self.name or f"{self.model.name}-{self.recipe.name}"
