"""The little SVG that charts need: scales, ticks and elements. Colours come from the page's style sheet."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LETTER = 7.4  # pixels: what a character of 12 pixels takes in a wide font, to leave labels enough room


@dataclass(frozen=True)
class LogScale:
    """Values from low to high onto pixels from start to end, in proportion to their logarithms."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times powers of ten that lie inside; fewer where there are many, more where there are few."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found: list[float] = []
        for factors in ((1,), (1, 2, 5), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 8)):
            ticks = [factor * 10.0**decade for decade in decades for factor in factors]
            found = [tick for tick in ticks if self.low * 0.999 <= tick <= self.high * 1.001]
            if len(found) >= 4:
                return found
        return found


def spanning(values: Sequence[float], start: float, end: float, margin: float = 1.08) -> LogScale:
    """A logarithmic scale that holds all values, none of them 0, with some room at both ends."""
    low, high = min(values) / margin, max(values) * margin
    return LogScale(low, high, start, end)


def element(tag: str, content: str = "", /, **attributes: object) -> str:
    """One element; `class_` is class, and underscores are dashes. The content must be escaped already."""
    texts = [f'{name.rstrip("_").replace("_", "-")}="{_value(value)}"' for name, value in attributes.items()]
    return f"<{' '.join([tag, *texts])}>{content}</{tag}>"


def text(words: str, x: float, y: float, **attributes: object) -> str:
    return element("text", escape(words), x=x, y=y, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> str:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)


def tooltip(words: str) -> str:
    return element("title", escape(words))


def picture(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """A chart that shrinks with the page and says to a screen reader what it shows."""
    content = tooltip(title) + "".join(parts)
    size = f"0 0 {_value(width)} {_value(height)}"
    return element(
        "svg", content, xmlns="http://www.w3.org/2000/svg", viewBox=size, role="img", style=f"max-width:{width:.0f}px"
    )


def spread(places: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """The places moved apart so that neighbours are `least` apart, as little as that takes and within low to high."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    found = list(places)
    for before, here in itertools.pairwise(order):
        found[here] = max(found[here], found[before] + least)
    limit = high
    for here in reversed(order):
        found[here] = max(low, min(found[here], limit))
        limit = found[here] - least
    return found


def plain(value: float) -> str:
    """Three digits, without an exponent where there are more before the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _value(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else escape(str(value))
