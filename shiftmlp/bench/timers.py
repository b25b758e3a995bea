"""How it is timed: contenders take turns, A B C A B C, so that a change of the machine hits all.

On a CPU one thread is timed by what the process has used of the CPU, which other processes hardly
touch, and several by the wall. Each sample follows a call that is not timed: caches are its own.

On a GPU every contender is captured in a CUDA graph that walks through several sets of inputs, more
than the L2 cache holds: the time is the device's, from cold memory, without the cost of launching.
"""

import math
import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import NamedTuple

import torch

SHORTEST_SAMPLE = 1e-3  # seconds: far above the clock's resolution
MAX_GRAPH_LOOPS = 32
MIN_SAMPLES = 5


class Timing(NamedTuple):
    """Microseconds for one call: the median, and the 20 % and 80 % quantiles."""

    median: float
    low: float
    high: float
    samples: int


def interleave(samplers: dict[str, Callable], seconds: float) -> dict[str, Timing]:
    """Sample all in turn for ``seconds`` in total; a sampler returns microseconds for one call."""
    taken = {name: [] for name in samplers}
    for sample in samplers.values():
        sample()
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < MIN_SAMPLES or time.perf_counter() < end:
        for name, sample in samplers.items():
            taken[name].append(sample())
        rounds += 1
    return {name: summary(samples) for name, samples in taken.items()}


def summary(samples: list[float]) -> Timing:
    low, *_, high = quantiles(samples, n=5, method="inclusive")
    return Timing(median(samples), low, high, len(samples))


def clock(device: str) -> str:
    """What times are read from, in words that stand in every row."""
    if device == "cuda":
        return "device"
    return "process CPU time" if torch.get_num_threads() == 1 else "wall"


def sampler(make_calls: Callable[[], list[Callable]], device: str) -> Callable[[], float]:
    """``make_calls`` gives one callable for each set of inputs."""
    return _graph_sampler(make_calls) if device == "cuda" else host_sampler(make_calls())


def host_sampler(calls: list[Callable]) -> Callable[[], float]:
    now = time.perf_counter if clock("cpu") == "wall" else time.process_time

    def passes(count: int) -> float:
        start = now()
        for _ in range(count):
            for call in calls:
                call()
        return now() - start

    def sample() -> float:
        passes(1)
        return passes(count) / (count * len(calls)) * 1e6

    passes(1)
    count = _loops(passes(1))
    return sample


def _graph_sampler(make_calls: Callable[[], list[Callable]]) -> Callable[[], float]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Made here because a backward runs on the stream of its forward, which must be captured.
        calls = make_calls()
        for call in calls * 2:
            call()
        once = _device_seconds(lambda: [call() for call in calls])
    loops = min(MAX_GRAPH_LOOPS, _loops(once))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(loops):
            # Kept for a pass, so that results as well go to memory that is out of the cache.
            results = [call() for call in calls]
    del results
    # The calls own tensors that the graph reads, so the closure must hold both.
    return lambda: _device_seconds(graph.replay) / (loops * len(calls)) * 1e6


def _device_seconds(run: Callable) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _loops(seconds: float) -> int:
    return max(1, math.ceil(SHORTEST_SAMPLE / max(seconds, 1e-9)))


def input_sets(nbytes: int, device: str) -> int:
    """How many sets of inputs leave nothing of the first in the L2 cache when it is read again."""
    if device != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return min(16, 1 + math.ceil(cache / nbytes))
