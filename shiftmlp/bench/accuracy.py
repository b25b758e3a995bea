"""Whether a result is right, and how far from the truth in units of eager PyTorch's own error."""

from torch import Tensor

from ..testing import GRADIENT_SLACK, SLACK, assert_as_good_as_torch, error_and_allowance

_BATCHED = ("y", "x", "u", "v")


def judge(ours: dict, eager: dict, exact: dict) -> tuple[float, bool]:
    """The worst error ratio over all results, and whether all are within the tolerance policy.

    A ratio of SLACK is the most that the policy allows: its rounding step and its wider bound for
    gradients of weights are divided out. Where eager is exact, as where data only moves, so are we.
    """
    ratios, right = [], True
    for name, truth in exact.items():
        trio, slack = (ours[name], eager[name], truth), _slack(name)
        ratios.append(_ratio(*trio, slack))
        try:
            assert_as_good_as_torch(*trio, slack)
        except AssertionError:
            right = False
    return max(ratios), right and max(ratios) <= SLACK


def _slack(name: str) -> float:
    return SLACK if name in _BATCHED else GRADIENT_SLACK


def _ratio(ours: Tensor, eager: Tensor, exact: Tensor, slack: float) -> float:
    error, allowed = error_and_allowance(ours, eager, exact, slack)
    if error == 0 or error == float("inf"):
        return error
    eagers_error, _ = error_and_allowance(eager, eager, exact, slack)
    return SLACK * error / allowed if eagers_error > 0 else float("inf")
