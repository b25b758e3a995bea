"""``python -m shiftmlp verify``: an accelerated model against its original, as a whole."""

import argparse
import copy

import torch

from ..accelerate import accelerate, explain, verify
from . import _models
from ._console import add_json, save_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _models.add_arguments(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """0 if every block was replaced and the models agree, else 1."""
    _models.settle(args)
    torch.manual_seed(0)
    model, side = _models.load(args)
    images = torch.randn(args.batch or 2, 3, side, side).to(args.device, _models.DTYPES[args.dtype])
    ours = accelerate(copy.deepcopy(model), backend=args.backend)
    report = explain(ours)
    report.show()
    result = verify(model, ours, images)
    print(f"whole model: {result}")
    save_json(args.json, {"report": report.to_dict(), "model": result.to_dict()})
    return 0 if result and report.replaced and not report.kept else 1
