"""The ledger: per optimiser step, how much of what was learned lies where the constraint forbade it."""

from dataclasses import asdict, dataclass, field

from tropism.errors import LeakExceeded


@dataclass(frozen=True)
class Entry:
    """One optimiser step. Every figure is a share or a cosine, without unit."""

    step: int
    leak_before: float
    """`‖Uᵀ(θ̃ₜ − θₜ₋₁)‖ / ‖θ̃ₜ − θₜ₋₁‖` of the optimiser's own update, before the correction."""
    leak_after: float
    """The same after the correction."""
    leak_cumulative: float
    """`‖Uᵀ(θₜ − θ₀)‖ / ‖θₜ − θ₀‖` since the guard was attached."""
    share_removed: float
    """Share of the squared gradient that the projection took away, `‖UUᵀg‖² / ‖g‖²`."""
    cosine: float
    """Cosine of gradient and direction, before the projection; negative where descent moves along the
    direction.
    """


@dataclass
class Ledger:
    """All entries since the guard was attached, and the rule that fails a run."""

    tolerance: float | None
    """Largest cumulative leak; None where nothing is promised (the published rule, `soft`), so nothing can
    fail.
    """
    dtypes: str = ""
    entries: list[Entry] = field(default_factory=list)
    _read: int = 0

    def record(self, entry: Entry) -> None:
        """Add a step; raises `LeakExceeded` where the cumulative leak is over the tolerance or is not a
        number.
        """
        self.entries.append(entry)
        if self.tolerance is not None and not entry.leak_cumulative <= self.tolerance:
            raise LeakExceeded(
                f"UpdateConstraint: cumulative leak {entry.leak_cumulative:.2e} at step {entry.step} is over "
                f"tolerance {self.tolerance:.0e}; the adapter is trained in {self.dtypes} (bfloat16 and "
                "float16 round the correction away: train the adapter in float32, or raise tolerance), and "
                "its gradients must be finite"
            )

    def readings(self) -> dict[str, float]:
        """Over the steps since the last call: the largest leaks, the last cumulative one, mean share and
        cosine.
        """
        new, self._read = self.entries[self._read :], len(self.entries)
        if not new:
            return {}
        return {
            "guard/update_constraint/leak_before": max(entry.leak_before for entry in new),
            "guard/update_constraint/leak_after": max(entry.leak_after for entry in new),
            "guard/update_constraint/leak_cumulative": new[-1].leak_cumulative,
            "guard/update_constraint/share_removed": sum(entry.share_removed for entry in new) / len(new),
            "guard/update_constraint/cosine": sum(entry.cosine for entry in new) / len(new),
        }

    def table(self) -> list[dict[str, int | float]]:
        """One row a step, for a data frame."""
        return [asdict(entry) for entry in self.entries]
