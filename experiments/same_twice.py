"""Does the benchmark find differences where there are none? A model without zeros and its dense twin: the same twice.

Each time all processes are started anew. Prints, for each runtime, how often no difference was found within a report,
and how often none was found between one report and the next.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter

import sparsify
from sparsify.bench.changes import compare_reports
from sparsify.bench.statistics import sign


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="wrn-22-2-cifar10")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--runtime", action="append", help="this one only; may be repeated")
    given = parser.parse_args()
    options = {"sparsities": [0.0], "threads": given.threads, "seconds": given.seconds}
    reports = []
    for i in range(given.times):
        reports.append(sparsify.benchmark([given.recipe], given.runtime, **options))
        ratios = ", ".join(
            f"{r.runtime} {r.speed_up.median:.3f} [{r.speed_up.low:.3f}, {r.speed_up.high:.3f}]"
            for r in reports[-1].rows
        )
        print(f"{i + 1} of {given.times}: {ratios}", flush=True)
    within = Counter(row.runtime for report in reports for row in report.rows if sign(row.speed_up) == 0)
    changes = [change for old, new in itertools.pairwise(reports) for change in compare_reports(old, new).changes]
    between = Counter(change.runtime for change in changes if change.verdict == "no change found")
    timed = Counter(row.runtime for report in reports for row in report.rows)
    compared = Counter(change.runtime for change in changes)
    for runtime in timed:
        print(
            f"{runtime}: no difference {within[runtime]} times of {timed[runtime]}, "
            f"no change between reports {between[runtime]} times of {compared[runtime]}"
        )
    for failed in {f"{what}: {why}" for report in reports for what, why in report.left_out.items() if " on " in what}:
        print(f"left out {failed}")


if __name__ == "__main__":
    main()
