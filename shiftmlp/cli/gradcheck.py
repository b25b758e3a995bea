"""``python -m shiftmlp gradcheck``: every op's gradients against finite differences, in float64."""

import argparse
import inspect
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from .. import functional as SF
from .._settings import BACKENDS
from ..accelerate._table import print_table
from ..norm import Affine, LayerNorm
from ..ops._op import ELSEWHERE, ON_A_GPU
from ..shift import Shift
from ._console import Progress, UserError, add_json, save_json

B, H, W, S, S_OUT, C, O, D = 2, 2, 3, 3, 4, 5, 3, 4  # noqa: E741
GRID, TOKENS = (B, H, W, C), (B, S, C)
INPUTS = {
    "spatial_shift": {"x": GRID},
    "shift_linear": {"x": GRID, "weight": (O, C), "bias": (O,)},
    "shift_mlp": {"x": GRID, "w1": (D, C), "b1": (D,), "w2": (O, D), "b2": (O,)},
    "token_linear": {"x": TOKENS, "weight": (S_OUT, S), "bias": (S_OUT,)},
    "token_mlp": {"x": TOKENS, "w1": (D, S), "b1": (D,), "w2": (S_OUT, D), "b2": (S_OUT,)},
    "token_gate": {"u": (B, S_OUT, C), "v": TOKENS, "weight": (S_OUT, S), "bias": (S_OUT,)},
    "channel_mlp": {"x": TOKENS, "w1": (D, C), "b1": (D,), "w2": (O, D), "b2": (O,)},
}
# What an op lacks of these is left out.
VARIANTS = {
    "plain": {"activation": None, "shift": Shift.S2},
    "LayerNorm, gelu": {"activation": "gelu", "norm": LayerNorm, "shift": Shift.S2_SWAPPED},
    "Affine, gelu_tanh": {"activation": "gelu_tanh", "norm": Affine, "shift": Shift.axial(3, "h")},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("ops", nargs="*", metavar="OP", help=f"of {', '.join(INPUTS)}; all if none is named")
    add("--backend", choices=BACKENDS[1:], help="default: each that serves the device")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--samples", type=int, default=1, help="random inputs for each case (default 1)")
    add("--seed", type=int, default=0)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """0 if no gradient is wrong and at least one was checked, else 1."""
    unknown = sorted(set(args.ops) - set(INPUTS))
    if unknown:
        raise UserError(f"no op is named {unknown[0]!r}; there are {', '.join(INPUTS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but PyTorch finds no GPU")
    serving = ON_A_GPU if args.device == "cuda" else ELSEWHERE
    backends = [args.backend] if args.backend else serving
    ops = args.ops or INPUTS
    cases = [(op, backend, name) for op in ops for backend in backends for name in variants(op)]
    rows = []
    try:
        with Progress("gradcheck", len(cases)) as progress:
            for op, backend, name in cases:
                result = check(op, backend, name, args)
                rows.append({"op": op, "backend": backend, "case": name, "result": result})
                progress.step(f"{op} ({backend}, {name}): {result}")
    finally:
        cells = [list(row.values()) for row in rows]
        print_table("gradcheck in float64", ["op", "backend", "case", "result"], cells)
    save_json(args.json, {"rows": rows})
    results = [row["result"] for row in rows]
    return 0 if "ok" in results and not any(r.startswith("WRONG") for r in results) else 1


def check(op: str, backend: str, variant: str, args: argparse.Namespace) -> str:
    """ "ok", "WRONG: ..." or "refused: ..."."""
    for sample in range(args.samples):
        generator = torch.Generator().manual_seed(args.seed + sample)
        names, tensors = inputs(op, variant, generator, args.device)
        try:
            torch.autograd.gradcheck(_function(op, variant, names, backend), tensors)
        except NotImplementedError as error:
            return f"refused: {str(error).splitlines()[0]}"
        except GradcheckError as error:
            return f"WRONG: {str(error).splitlines()[0]}"
    return "ok"


def variants(op: str) -> Iterator[str]:
    takes = inspect.signature(getattr(SF, op)).parameters
    seen = []
    for name, options in VARIANTS.items():
        given = {key: value for key, value in options.items() if key in takes}
        if given not in seen:
            seen.append(given)
            yield name


def inputs(op: str, variant: str, generator, device: str) -> tuple[list[str], list[Tensor]]:
    """The tensors of one case by name; the plain one has neither bias nor extras."""
    takes = inspect.signature(getattr(SF, op)).parameters
    shapes = dict(INPUTS[op])
    if variant == "plain":
        shapes = {name: s for name, s in shapes.items() if name not in ("bias", "b1", "b2")}
    else:
        shapes |= {
            f"{norm}.{part}": (C if norm == "norm" else O,)
            for norm in ("norm", "post_norm")
            if norm in takes
            for part in ("weight", "bias")
        }
        scale = C if op.startswith("token") else O
        result = {"token": (B, S_OUT, C), "shift": (B, H, W, O), "channel": (B, S, O)}
        shapes |= {"scale": (scale,)} if "scale" in takes else {}
        shapes |= {"residual": result[op.partition("_")[0]]} if "residual" in takes else {}
    draw = {"generator": generator, "dtype": torch.float64}
    return list(shapes), [
        torch.randn(shape, **draw).to(device).requires_grad_() for shape in shapes.values()
    ]


def _function(op: str, variant: str, names: list[str], backend: str):
    function, options = getattr(SF, op), VARIANTS[variant]
    takes = inspect.signature(function).parameters
    fixed = {key: options[key] for key in ("activation", "shift") if key in takes}

    def call(*tensors):
        given = dict(zip(names, tensors, strict=True))
        for norm in ("norm", "post_norm"):
            if f"{norm}.weight" in given:
                weights = given.pop(f"{norm}.weight"), given.pop(f"{norm}.bias")
                given[norm] = options["norm"](*weights)
        given |= {b: None for b in ("b1", "b2") if b in takes and b not in given}
        return function(**given, **fixed, backend=backend)

    return call
