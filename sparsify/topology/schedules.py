"""When masks are updated, and what share of the connections an update replaces."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# Share of alpha that is left at t of t_end, 0 <= t <= t_end (Evci et al. 2020, section 3.2 and appendix G).
DECAYS: dict[str, Callable[[float, float], float]] = {
    "cosine": lambda progress, power: (1 + math.cos(math.pi * progress)) / 2,
    "constant": lambda progress, power: 1.0,
    "linear": lambda progress, power: 1 - progress,
    "inverse_power": lambda progress, power: (1 - progress) ** power,
}


@dataclass(frozen=True)
class UpdateSchedule:
    """Updates at every `delta_t`-th step until step `t_end`; steps are counted from 1.

    Where an update looks at dense gradients, it looks at the sum of those of the last `growth_batches` steps.
    """

    delta_t: int
    alpha: float
    t_end: int
    decay: str = "cosine"
    power: float = 3.0
    growth_batches: int = 1

    def is_update_step(self, step: int) -> bool:
        return step % self.delta_t == 0 and 0 < step <= self.t_end

    def counts_for_growth(self, step: int) -> bool:
        """Whether the next update looks at this step's gradient: its own, or one of the steps' just before it."""
        ahead = -step % self.delta_t
        return ahead < self.growth_batches and 0 < step <= self.t_end - ahead

    def drop_fraction(self, step: int) -> float:
        """f(t): the share of a layer's connections that an update at this step replaces."""
        if not self.t_end or step > self.t_end:
            return 0.0
        return self.alpha * DECAYS[self.decay](step / self.t_end, self.power)

    def last_update(self) -> int:
        """The last update step, 0 where there is none."""
        return self.t_end - self.t_end % self.delta_t

    def progress(self, step: int) -> float:
        """Share of the time until the last update that has passed, 0 to 1."""
        last = self.last_update()
        return min(1.0, step / last) if last else 0.0


def cubic_count(initial: int, final: int, progress: float) -> int:
    """Connections left on the way from `initial` to `final`: n_f + (n_i - n_f) (1 - progress)^3.

    Fast at first, when many connections are redundant, and slow at the end (Zhu and Gupta 2018, equation 1).
    """
    return final + math.floor((initial - final) * (1 - progress) ** 3)
