"""Two programs timed in turns, so that a slow moment of the machine falls on both."""

import statistics
import time
from collections.abc import Callable, Iterator

import torch

ROUNDS = 5


def in_turns(
    first: Callable[[], object], second: Callable[[], object], device: torch.device, rounds: int
) -> Iterator[tuple[float, float]]:
    """Seconds of each, ``rounds`` times, after one call of each that is not counted."""
    seconds(first, device), seconds(second, device)
    for _ in range(rounds):
        yield seconds(first, device), seconds(second, device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """The wall time of one call, including the work that it queued on the device."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def gain_of(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """``(median gain, the gain that 3 rounds of 4 stay below)``; a gain is first's by second's."""
    gains = sorted(first / second for first, second in pairs)
    return statistics.median(gains), gains[(3 * len(gains)) // 4]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
