"""The steps of a program in groups that are one call each: which take turns, and which borders are written before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsify.engine.bands import Moving, turns
from sparsify.engine.kernels.borders import border_stage
from sparsify.engine.memory import Weights
from sparsify.engine.memory_plan import MemoryPlan, Place
from sparsify.engine.stage import PythonStage, Stage


@dataclass(frozen=True, eq=False)
class Step:
    """One stage and where its values lie."""

    operation: str  # the grammar's name; "copy" for a copy between layouts
    name: str  # of the layer, as the model file calls it; empty where it has none
    stage: Stage | PythonStage
    reads: tuple[Place, ...]
    writes: tuple[Place, ...]
    around: tuple[Place, ...] = ()  # of what it reads, that of which the borders matter

    @property
    def fills(self) -> bool:
        """As in Stage."""
        return isinstance(self.stage, Stage) and self.stage.fills

    @property
    def replaced(self) -> Place | None:
        """What the result may be written over."""
        name = self.stage.replaces if isinstance(self.stage, Stage) else None
        return next((place for place in self.reads if place[0] == name), None)


@dataclass(frozen=True)
class Group:
    """Native steps, or one in Python, and the borders to be written before some of them."""

    steps: list[Step]
    borders: list[tuple[int, Step]]

    @property
    def all(self) -> list[Step]:
        return [*self.steps, *(step for _, step in self.borders)]


def kept(stage: Stage, weights: Weights) -> Stage:
    """The stage with its constants and code where they stay."""
    address = weights.put(stage.code) if stage.code else 0
    return replace(stage, constants=tuple(weights.kept(array) for array in stage.constants), code=(), address=address)


def settled(steps: Sequence[Step], plan: MemoryPlan, weights: Weights, band: int) -> list[Group]:
    """The groups, with memory for their values; `band` as in Tuning.band_bytes."""
    groups, start, runs = _grouped(steps), 0, []
    for group in groups:
        if isinstance(group[0].stage, Stage):
            found = turns([moving(step, plan) for step in group], band)
            runs += [range(start + run.start, start + run.stop) for run in found]
        start += len(group)
    plan.settle(runs)
    borders, start, whole = plan.borders(), 0, []
    for group in groups:
        end = start + len(group)
        mine = [
            (at - start, _border(place, is_filled, weights)) for at, place, is_filled in borders if start <= at < end
        ]
        whole.append(Group(group, mine))
        start = end
    return whole


def _border(place: Place, is_filled: bool, weights: Weights) -> Step:
    name, layout = place
    assert layout is not None
    return Step("borders", "", kept(border_stage(name, layout, is_filled), weights), (), (place,))


def _grouped(steps: Sequence[Step]) -> list[list[Step]]:
    """Runs of native steps, and Python steps alone."""
    groups: list[list[Step]] = []
    for step in steps:
        native = isinstance(step.stage, Stage)
        if not groups or not native or isinstance(groups[-1][0].stage, PythonStage):
            groups.append([])
        groups[-1].append(step)
    return groups


def moving(step: Step, plan: MemoryPlan) -> Moving | int:
    """A step as bands see it."""
    stage = step.stage
    assert isinstance(stage, Stage)
    places = {*step.reads, *step.writes}
    slots = {place: slot for place in places if (slot := plan.slot(place)) is not None}
    if stage.sweep is None or len(slots) < len(places):
        return stage.tiles
    size = sum({slot: layout.size * 4 for (_, layout), slot in slots.items() if layout is not None}.values())
    writes = slots[step.writes[0]]
    return Moving(stage.sweep, tuple(slots[place] for place in step.reads), writes, size, plan.over(writes))
