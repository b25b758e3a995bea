"""What the machine can do: measured in the same run, and where known the data sheet's limit.

The floor of a case is the larger of flops over the measured matrix rate and bytes over the measured
copy bandwidth. A row faster than the limit allows is a fault of the measurement.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .._native import peak_rates
from .timers import host_sampler, sampler

# Dense FLOP/s in bfloat16, and what a float32 product split into TF32 ones can reach; bytes/s.
# NVIDIA's data sheets: H200 and H100 SXM (2024), A100 SXM 80 GB (2021).
DATA_SHEET = {
    "NVIDIA H200": (989e12, 495e12, 67e12, 4.8e12),
    "NVIDIA H100 80GB HBM3": (989e12, 495e12, 67e12, 3.35e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 156e12, 19.5e12, 2.04e12),
}
# Elsewhere: measured rates come out low on a busy machine, and a library's product is no limit.
HEADROOM = 2.0
LARGE = 2**30  # bytes: far beyond any cache
_WIDTHS = {torch.bfloat16: 0, torch.float16: 0, torch.float32: 1, torch.float64: 2}


@dataclass(frozen=True)
class Roofline:
    rate: float  # FLOP/s, measured
    bandwidth: float  # bytes/s, measured, read and written bytes alike
    rate_limit: float
    bandwidth_limit: float
    source: str

    def floor(self, flops: int, nbytes: int) -> float:
        """The least microseconds at the measured rates."""
        return max(flops / self.rate, nbytes / self.bandwidth) * 1e6

    def impossible(self, time_us: float, flops: int, nbytes: int) -> bool:
        limit = max(flops / self.rate_limit, nbytes / self.bandwidth_limit) * 1e6
        return time_us <= 0 or time_us < limit


def roofline(device: str, dtype: torch.dtype, nbytes: int = LARGE) -> Roofline:
    """Measured once for each dtype; on a CPU, where caches are large, for each traffic too."""
    threads = 1 if device == "cuda" else torch.get_num_threads()
    rate = _rate(device, dtype, threads)
    if device == "cuda":
        bandwidth = _bandwidth(device, LARGE, threads)
        name = torch.cuda.get_device_name()
        if name in DATA_SHEET:
            *rates, memory = DATA_SHEET[name]
            return Roofline(rate, bandwidth, rates[_WIDTHS[dtype]], memory, "data sheet")
    else:
        bandwidth = _bandwidth(device, min(LARGE // 4, 1 << nbytes.bit_length()), threads)
    return Roofline(rate, bandwidth, HEADROOM * rate, HEADROOM * bandwidth, f"{HEADROOM}x measured")


@functools.cache
def _rate(device: str, dtype: torch.dtype, threads: int) -> float:
    """On a CPU what the multiply-add units of the threads' cores can do, as no library's product
    reaches that everywhere. A dtype without units of its own is widened to one that has them."""
    if device == "cuda":
        return _product_rate(device, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    peaks = {name: threads * rate for name, rate in peak_rates().items()}
    peaks["float64"] = peaks.get("float32", 0) / 2
    peak = max(peaks.get(str(one).removeprefix("torch."), 0) for one in (dtype, wide))
    return peak or max(_product_rate(device, one) for one in (dtype, wide))


def _product_rate(device: str, dtype: torch.dtype) -> float:
    size = 8192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    runs = [lambda: F.linear(a, b)]
    if device == "cpu":
        # The same product as a 1x1 convolution: another library, which may know this CPU better.
        image = a.t().reshape(1, size, 32, size // 32).contiguous(memory_format=torch.channels_last)
        runs.append(lambda: F.conv2d(image, b.reshape(size, size, 1, 1)))
    return 2 * size**3 / min(_best(run, device) for run in runs)


@functools.cache
def _bandwidth(device: str, nbytes: int, threads: int) -> float:
    source = torch.empty(max(1, nbytes // 2), dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / _best(lambda: target.copy_(source), device)


def _best(run, device: str) -> float:
    sample = sampler(lambda: [run], device) if device == "cuda" else host_sampler([run])
    return min(sample() for _ in range(5)) / 1e6
