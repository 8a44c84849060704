"""What the steps of a run cost, told apart by whether they updated the masks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Times:
    """Seconds of wall time since this process took the run up; evaluation and saving do not count."""

    steps: int = 0
    seconds: float = 0.0
    updates: int = 0
    update_seconds: float = 0.0  # of whole steps that updated the masks

    def add(self, seconds: float, updated: bool) -> None:
        """One more step."""
        if updated:
            self.updates += 1
            self.update_seconds += seconds
        else:
            self.steps += 1
            self.seconds += seconds

    def summary(self) -> dict[str, float]:
        """Seconds of a step, of one that updates the masks, and the latter's share of all; what there was none of is
        left out."""
        found = {"step_seconds": self.seconds / self.steps} if self.steps else {}
        if self.updates:
            found["update_step_seconds"] = self.update_seconds / self.updates
            found["update_share"] = self.update_seconds / (self.seconds + self.update_seconds)
        return found
