"""What the launches of the CUDA kernels cost, clock by clock: ``predict_cuda.py`` has the table.

A block spends clocks in every pipe of its multiprocessor: tensor cores, the warp schedulers (four,
an instruction of a warp each: "issue"), the FP32 units, those of MUFU, shared memory and the L2.
Instructions are counted by issue.py in the machine code: of the loop over chunks and of a result's
way out, of what turns or gathers an operand, of a row of a pass. What is before and behind loops
does not count. Tiles and grids are those that the launchers in csrc/cuda choose.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from predict import CLOCK, H200, LAUNCH_US, MULTIPROCESSORS, up

from shiftmlp.bench.roofline import DATA_SHEET

ISSUED = json.loads(Path(__file__).with_name("issued.json").read_text())
SHARED = 128  # bytes in a clock (CUDA programming guide: 32 banks of 4)


@dataclass(frozen=True)
class Device:
    name: str
    arch: str  # whose code it runs
    multiprocessors: int
    clock: float  # Hz
    rate: float  # operations in a second, a library's in bfloat16
    mma: float  # of which mma.sync reaches so much
    bandwidth: float  # bytes in a second, here and below
    l2: float
    fp32: int  # lanes of a multiprocessor
    regions: tuple[int, ...] = ()  # multiprocessors of which a cluster may be, as assumed

    def clusters(self, blocks: int) -> int:
        """Of more than two blocks: how many run at once."""
        return max(1, sum(n // blocks for n in self.regions or (self.multiprocessors,)))


A100_SHEET = DATA_SHEET["NVIDIA A100-SXM4-80GB"]
DEVICES = (
    # mma.sync: Luo et al., "Dissecting the NVIDIA Hopper Architecture" (arXiv 2402.13499). L2:
    # assumed is what Chips and Cheese (2023) measured on an H100 PCIe, which is slower and smaller.
    Device("H200", "sm_90a", MULTIPROCESSORS, CLOCK, H200.rate, 0.62, H200.bandwidth, 5.5e12, 128,
           6 * (16,) + 2 * (18,)),
    # NVIDIA's data sheet and white paper: 1.41 GHz, and an L2 of 5120 bytes a clock.
    Device("A100", "sm_80", 108, 1.41e9, A100_SHEET[0], 1.0, A100_SHEET[-1], 5120 * 1.41e9, 64),
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """Of a device, a dtype, and whether the kernels for sm_90a take the tensors."""

    device: Device
    dtype: str  # "bf16" or "tf32"
    hopper: bool

    @property
    def item(self) -> int:
        return 2 if self.dtype == "bf16" else 4

    @property
    def type(self) -> str:
        return "__nv_bfloat16" if self.dtype == "bf16" else "float"

    @property
    def rate(self) -> float:
        """A library's."""
        return self.device.rate * 2 / self.item

    def floor_us(self, operations: int, nbytes: int) -> float:
        return 1e6 * max(operations / self.rate, nbytes / self.device.bandwidth)


@dataclass
class Launch:
    """``parts`` of the work, each of which takes a multiprocessor so many clocks of every pipe."""

    way: Way
    kernel: str
    parts: int
    nbytes: int
    operations: int = 0  # that are asked for
    cluster: int = 1
    persistent: bool = False  # blocks take parts in turns
    down: int = 1  # of them stand below one another, each with parts of its own
    resident: int = 1
    clocks: Counter = field(default_factory=Counter)

    def run(self, region: str, times: float) -> None:
        """What a warp issues in the region, so many times."""
        device = self.way.device
        counts = ISSUED[device.arch][self.kernel][region]
        self.clocks["issue"] += times * counts["issued"] / 4
        self.clocks["fp32"] += times * counts["fp32"] * 32 / device.fp32
        self.clocks["mufu"] += times * counts["mufu"] * 32 / 16

    def multiply(self, operations: float, share: float) -> None:
        """At that share of a library's rate."""
        device = self.way.device
        rate = self.way.rate / device.multiprocessors / device.clock
        self.clocks["tensor"] += operations / rate / share

    def move(self, shared: float, l2: float = 0) -> None:
        """Bytes."""
        device = self.way.device
        self.clocks["shared"] += shared / SHARED
        self.clocks["L2"] += l2 * device.multiprocessors * device.clock / device.l2

    @property
    def at_once(self) -> int:
        """Multiprocessors that have blocks."""
        device = self.way.device
        if self.cluster > 2:
            return device.clusters(self.cluster) * self.cluster
        return device.multiprocessors // self.down // self.cluster * self.cluster * self.down

    @property
    def blocks(self) -> int:
        if not self.persistent:
            return self.parts
        return min(up(self.parts // self.down, self.cluster) * self.down, self.at_once)

    @property
    def waves(self) -> float:
        return self.parts / (self.at_once * self.resident)

    @property
    def busiest(self) -> int:
        """Parts of the multiprocessor that has most of them."""
        if self.waves > 1:  # the last wave lasts a whole one
            return math.ceil(self.waves) * self.resident
        return math.ceil(self.parts / self.at_once)

    def times_us(self) -> dict[str, float]:
        """Of every pipe and of the memory."""
        device = self.way.device
        pipes = {name: 1e6 * self.busiest * n / device.clock for name, n in self.clocks.items()}
        memory = 1e6 * self.nbytes / device.bandwidth
        if not self.operations:  # assumed: no multiprocessor draws more than its part
            memory *= device.multiprocessors / min(self.parts, device.multiprocessors)
        return pipes | {"memory": memory}

    def bound(self) -> str:
        times = self.times_us()
        return max(times, key=times.get)

    def predicted_us(self) -> float:
        return max(self.times_us().values()) + LAUNCH_US

    def apart_us(self) -> float:
        """Tensor cores, what is issued and what is moved one after another."""
        times = self.times_us()
        issued = max(times.pop(name, 0) for name in ("issue", "fp32", "mufu"))
        return sum(times.values()) + issued + LAUNCH_US

    def floor_us(self) -> float:
        return self.way.floor_us(self.operations, self.nbytes)
