"""``python -m shiftmlp explain``: what accelerate would do with a model, and why."""

import argparse

import torch

from ..accelerate import explain
from . import _models
from ._console import add_json, save_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _models.add_arguments(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """0, also where nothing can be replaced: that is the answer, not a failure."""
    from .._settings import use_backend

    _models.settle(args)
    model, side = _models.load(args)
    images = torch.randn(args.batch or 2, 3, side, side).to(args.device, _models.DTYPES[args.dtype])
    with use_backend(args.backend):
        report = explain(model, images)
    report.show()
    save_json(args.json, report.to_dict())
    return 0
