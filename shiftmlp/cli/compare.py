"""``python -m shiftmlp compare A.json B.json``: what became faster and what slower from A to B."""

import argparse

from ..bench.report import compare, comparison_table, load
from ._console import UserError

SAME = ("device", "threads", "torch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", metavar="A.json")
    parser.add_argument("after", metavar="B.json")
    text = "exit with 1 if a row of ours runs below this share of its speed in A, or is now wrong"
    parser.add_argument("--fail-below", type=float, metavar="SHARE", help=text)


def run(args: argparse.Namespace) -> int:
    """0, or 1 if the gate is not met."""
    try:
        before, after = load(args.before), load(args.after)
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from None
    for name in SAME:
        then, now = (file["environment"].get(name) for file in (before, after))
        if then != now:
            print(f"note: {name} was {then}, is {now}")
    rows = compare(before, after)
    if not rows:
        raise UserError("the files have no row in common")
    print(comparison_table(rows))
    if args.fail_below is None:
        return 0
    slower = [row for row in rows if row["ours"] and row["speed"] < args.fail_below]
    print(f"{len(slower)} of our rows below {args.fail_below:g}x")
    return 1 if slower else 0
