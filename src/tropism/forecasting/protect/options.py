"""What `protect` is asked for."""

from dataclasses import dataclass, field
from typing import Any

from tropism.errors import UsageError
from tropism.forecasting.dry_run import default_recipe
from tropism.stats.estimates import FEWEST_SEEDS
from tropism.training.options import TrainOptions

GUARDS = ("without_rows", "inoculation", "routing", "gradient_projection", "steering", "kl", "safe_data")
FIRST_SEED = 100
"""The confirmation's seeds begin here; the race's at 0."""


@dataclass(frozen=True)
class ProtectOptions:
    """How much is spent, and on what."""

    recipe: TrainOptions | None = None
    """The planned training; by default three passes in batches of 4, at most 32 steps."""
    wanted: str | None = None
    """The scorer of the wanted skill; by default how likely the held-out responses are."""
    wanted_options: dict[str, Any] = field(default_factory=dict)
    margin: float = 0.05
    """How much of the wanted metric may be lost."""
    guards: tuple[str, ...] = ()
    """The candidates to try; by default all. Controls are always tried, but random steering with steering alone."""
    max_seeds: int = 3
    """The most seeds of the confirmation."""
    rows: int = 1024
    """Rows whose activations the forecast reads."""
    own: int = 32
    """Prompts that the model answers itself."""
    answers: int = 48
    """Responses in each evaluation set; prompts are asked again where there are fewer."""
    device: str = "auto"
    blocks: str | None = None
    """Where the decoder blocks are, where that cannot be told."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.guards) - set(GUARDS))
        if unknown:
            raise UsageError(f"--guard: no guard is called {unknown[0]!r}; known are {', '.join(GUARDS)}")
        if self.max_seeds < FEWEST_SEEDS:
            raise UsageError(f"--max-seeds: a claim needs at least {FEWEST_SEEDS} seeds, found {self.max_seeds}")

    def train(self, rows: int) -> TrainOptions:
        """The training that every candidate gets: the same number of steps, also where rows are dropped."""
        if self.recipe is not None:
            return self.recipe.model_copy(update={"max_steps": self.recipe.steps(rows), "epochs": None})
        return default_recipe(rows)
