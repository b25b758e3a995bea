"""The tolerance policy: every bound that tests, ``verify`` and benchmarks use stands here.

The truth is the reference in float64 on inputs already rounded to the dtype under test. A kernel
may err at most twice as far from it as unfused PyTorch in the same dtype does, plus one rounding
step; of several draws of a case, on average. No bound is absolute, so none has to be tuned to a
shape, a dtype or a device. Where data only moves, results are equal bit by bit.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

SLACK = 2.0  # of PyTorch's own largest error
MEAN_SLACK = 1.5  # of PyTorch's own mean error: a bias hides below the largest error
GRADIENT_SLACK = 3.0  # for weights, whose sums run over all positions in another order
ROUNDING_STEPS = 32  # between two programs that sum the same terms in different orders
MIN_REGION = 16  # elements: the largest error of fewer says little


def error_and_allowance(
    ours: Tensor, torchs: Tensor, exact: Tensor, slack: float = SLACK
) -> tuple[float, float]:
    """``(largest error of ours, largest allowed)`` against the float64 truth.

    Infinite where NaN or Inf stand in other places than in the truth.
    """
    if ours.shape != exact.shape:
        return float("inf"), 0.0
    if ours.numel() == 0:
        return 0.0, 0.0
    step = torch.finfo(ours.dtype).eps
    ours, torchs, exact = ours.double(), torchs.double(), exact.double()
    finite = exact.isfinite()
    if not torch.equal(ours.isfinite(), finite):
        return float("inf"), 0.0
    ours, torchs, exact = (t.where(finite, 0) for t in (ours, torchs, exact))
    torchs = torchs.where(torchs.isfinite(), exact)
    allowed = slack * (torchs - exact).abs().max() + step * exact.abs().max()
    return (ours - exact).abs().max().item(), allowed.item()


def assert_as_good_as_torch(ours, torchs, exact, slack: float = SLACK) -> None:
    """Our error is within the policy, in the whole result and along each of its edges.

    Each argument is what an op returned: a tensor, or a list of tensors.
    """
    assert_as_good_on_average([(ours, torchs, exact)], slack)


def assert_as_good_on_average(draws: list[tuple], slack: float = SLACK) -> None:
    """The same of several draws of one case, each ``(ours, torchs, exact)``.

    The largest error of a few numbers is chance, PyTorch's as well as ours; the mean over draws of
    the largest errors is much less so, and is what must be within the mean of the allowances.
    """
    if not isinstance(draws[0][2], Tensor):
        assert all(len(draw[0]) == len(draw[2]) for draw in draws), "wrong number of results"
        for index in range(len(draws[0][2])):
            try:
                parts = [tuple(results[index] for results in draw) for draw in draws]
                assert_as_good_on_average(parts, slack if index == 0 else GRADIENT_SLACK)
            except AssertionError as error:
                raise AssertionError(f"result {index}: {error}") from None
        return
    for ours, torchs, exact in draws:
        assert ours.shape == exact.shape, f"shape {tuple(ours.shape)}, wanted {tuple(exact.shape)}"
        assert ours.dtype == torchs.dtype, f"dtype {ours.dtype}, wanted {torchs.dtype}"
    for regions in zip(*(_regions(len(draws), *draw) for draw in draws), strict=True):
        found = [error_and_allowance(*parts, slack) for _, *parts in regions]
        error, allowed = (sum(column) / len(draws) for column in zip(*found, strict=True))
        assert error <= allowed, f"{regions[0][0]}: error {error:.2e}, allowed {allowed:.2e}"
    ours, torchs, exact = (torch.stack(tensors) for tensors in zip(*draws, strict=True))
    if exact.isfinite().all() and exact.numel() >= MIN_REGION:
        error, torchs_error = ((t.double() - exact).abs().mean() for t in (ours, torchs))
        step = torch.finfo(ours.dtype).eps * exact.abs().max() / 4
        allowed = MEAN_SLACK * torchs_error + step
        assert error <= allowed, f"mean error {error:.2e}, allowed {allowed:.2e}"


def _regions(draws: int, *tensors: Tensor) -> Iterator[tuple]:
    """The whole, then the first and last slice along every axis: faults live on edges."""
    yield "whole", *tensors
    for axis, size in enumerate(tensors[0].shape):
        if size and draws * tensors[0].numel() >= MIN_REGION * size:
            yield f"first of axis {axis}", *(t.select(axis, 0) for t in tensors)
            yield f"last of axis {axis}", *(t.select(axis, size - 1) for t in tensors)


def assert_close_to_rounding(ours, theirs) -> None:
    """Two programs for the same formula in the same dtype, apart by rounding alone.

    The gradients of one call are given as lists and share the largest value as their scale: what
    cancels to nearly nothing in one of them keeps the noise of the terms that cancelled.
    """
    if isinstance(theirs, Tensor):
        ours, theirs = [ours], [theirs]
    assert len(ours) == len(theirs), f"{len(ours)} results, wanted {len(theirs)}"
    scale = max((t.double().abs().max().item() for t in theirs if t.numel()), default=0.0)
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert mine.shape == other.shape, f"shape {tuple(mine.shape)}, wanted {tuple(other.shape)}"
        assert mine.dtype == other.dtype, f"dtype {mine.dtype}, wanted {other.dtype}"
        if mine.numel():
            error = (mine.double() - other.double()).abs().max().item()
            allowed = ROUNDING_STEPS * torch.finfo(mine.dtype).eps * scale
            assert error <= allowed, f"{index}: apart by {error:.2e}, allowed {allowed:.2e}"


def assert_same_bits(ours, theirs) -> None:
    """Equal bit by bit, NaN payloads and the sign of zero included."""
    if not isinstance(theirs, Tensor):
        for pair in zip(ours, theirs, strict=True):
            assert_same_bits(*pair)
        return
    assert ours.shape == theirs.shape, f"shape {tuple(ours.shape)}, wanted {tuple(theirs.shape)}"
    assert ours.dtype == theirs.dtype, f"dtype {ours.dtype}, wanted {theirs.dtype}"
    ours, theirs = (t.contiguous().flatten().view(torch.uint8) for t in (ours, theirs))
    differ = (ours != theirs).sum().item()
    assert not differ, f"{differ} of {ours.numel()} bytes differ"
