"""``python -m shiftmlp info``: what this installation is made of and what it can run."""

import argparse

from .._info import info
from ._console import add_json, save_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    found = info()
    for name, value in found.items():
        print_value(name, value)
    save_json(args.json, found)
    return 0


def print_value(name: str, value, indent: str = "") -> None:
    """``name: value``; the entries of a dict below it, each on its line."""
    if isinstance(value, dict) and value:
        print(f"{indent}{name}:")
        for inner, one in value.items():
            print_value(inner, one, indent + "  ")
        return
    if isinstance(value, list):
        value = ", ".join(map(_words, value))
    print(f"{indent}{name}: {'none' if value in (None, '', {}) else value}")


def _words(value) -> str:
    return " ".join(map(str, value.values())) if isinstance(value, dict) else str(value)
