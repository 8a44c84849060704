"""What the steps of a run cost, told apart by whether they updated the masks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Times:
    """Seconds of wall time since this process took the run up; evaluation, saving and the first step do not count.

    The first step compiles what is compiled once. A step behind an update makes native code for the new connections
    where they are sparse, so that what it takes beyond an ordinary step is the update's cost too.
    """

    steps: int = 0  # ordinary ones
    seconds: float = 0.0
    updates: int = 0
    update_seconds: float = 0.0  # of whole steps that updated the masks
    next_steps: int = 0  # behind an update
    next_seconds: float = 0.0
    started: bool = False
    updated: bool = False  # the last step did

    def add(self, seconds: float, updated: bool) -> None:
        """One more step."""
        if not self.started:
            self.started = True
        elif updated:
            self.updates += 1
            self.update_seconds += seconds
        elif self.updated:
            self.next_steps += 1
            self.next_seconds += seconds
        else:
            self.steps += 1
            self.seconds += seconds
        self.updated = updated

    def summary(self) -> dict[str, float]:
        """Seconds of a step, of one that updates the masks and of the one behind it, and the updates' share of all;
        what there was none of is left out."""
        found = {"step_seconds": self.seconds / self.steps} if self.steps else {}
        if self.updates:
            found["update_step_seconds"] = self.update_seconds / self.updates
        if self.next_steps:
            found["next_step_seconds"] = self.next_seconds / self.next_steps
        if self.updates and self.steps:
            more = self.next_seconds - self.next_steps * found["step_seconds"]
            total = self.seconds + self.update_seconds + self.next_seconds
            found["update_share"] = (self.update_seconds + max(0.0, more)) / total
        return found
