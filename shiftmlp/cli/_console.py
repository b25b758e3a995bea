"""What the commands share on a terminal, in a pipe and on disk."""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from ..bench.report import write_atomically


class UserError(Exception):
    """The request cannot be met; the message is all that the user has to see."""


class Progress:
    """A bar on a terminal; elsewhere one line for each step. Both go to stderr, results do not."""

    def __init__(self, title: str, total: int):
        self.title, self.total, self.done = title, total, 0
        self.is_live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def __enter__(self):
        if self.is_live:
            self._draw("")
        return self

    def __exit__(self, *error):
        if self.is_live:
            self._write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")

    def step(self, text: str = "") -> None:
        self.done += 1
        if self.is_live:
            self._draw(text)
        else:
            self._write(f"{self.title} {self.done}/{self.total} {text}".rstrip() + "\n")

    def _draw(self, text: str) -> None:
        width = 24
        filled = width * self.done // max(self.total, 1)
        bar = "#" * filled + "-" * (width - filled)
        line = f"{self.title} [{bar}] {self.done}/{self.total} {text}"
        columns = shutil.get_terminal_size().columns - 1
        self._write("\r" + line[:columns].ljust(columns))

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")


def save_json(path: Path | None, document: dict) -> None:
    """Replaces the file as a whole, so that nobody reads half of it."""
    if path is None:
        return
    try:
        write_atomically(path, json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def positive(text: str) -> int:
    """An argparse type."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)
