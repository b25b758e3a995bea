"""The CPU's side of the benchmark: peers, clocks, the peak, what is kept for backward, models."""

import sys
import types

import pytest
import torch
from test_bench import quickly  # noqa: F401

from shiftmlp import _native, cli
from shiftmlp.bench import (
    baselines,
    cases,
    environment,
    memory,
    peers,
    report,
    roofline,
    runner,
    timers,
)
from shiftmlp.bench.models import ModelCase
from shiftmlp.cli import bench as bench_command
from shiftmlp.testing import assert_close_to_rounding

TINY = cases.Case("token_mlp", "tiny", (("S", 13), ("C", 16), ("D", 8)))
SHIFT = cases.Case("shift_mlp", "tiny", (("H", 4), ("W", 5), ("C", 16), ("D", 16)))
GATE = cases.Case("token_gate", "tiny", (("S", 13), ("C", 16)))
MODEL = ModelCase("s2mlp_deep", (("img_size", 32), ("embed_dim", 16), ("num_blocks", 1)))


def measured(case=TINY, dtype=torch.float32, direction="fwd", against=("eager",), **options):
    settings = runner.Settings(against=against, backends=("reference",), seconds=0.0)
    rows, left_out, failed = runner.measure(
        runner.Job(case, 2, dtype, direction, **options), settings
    )
    assert not left_out and not failed
    return {row["contender"]: row for row in rows}


def test_peers_are_asked_only_for_what_they_are_made_for():
    def names(dtype, direction, device="cpu"):
        job = cases.Job(TINY, 2, dtype, direction)
        field = baselines.contenders(job, tuple(peers.PEERS), (), device)
        return [one.name for one in field][1:]

    assert names(torch.float32, "fwd") == ["freeze", "onnxruntime", "openvino"]
    assert names(torch.bfloat16, "fwd") == ["freeze", "openvino"]
    assert names(torch.float32, "fwd_bwd") == names(torch.float32, "fwd", "cuda") == []


@pytest.mark.parametrize(
    ("error", "mark"),
    [
        (ModuleNotFoundError("No module named 'onnxruntime'"), "absent"),
        (NotImplementedError("not this"), "refuses"),
        (RuntimeError("out of luck"), "fails"),
    ],
)
def test_a_peer_that_cannot_take_part_has_a_marked_row(monkeypatch, tmp_path, error, mark):
    def bind(function, **tensors):
        raise error

    monkeypatch.setitem(peers.PEERS, "onnxruntime", (bind, (torch.float32,)))
    rows = measured(against=("eager", "onnxruntime"))
    row = rows["onnxruntime"]
    assert (row["mark"], row["reason"], row["time_us"]) == (mark, str(error), None)
    assert rows["reference"]["ratios"].keys() == {"eager"}
    assert rows["reference"]["best"] == "eager"
    assert f"{mark.upper()}: {error}" in report.case_table(list(rows.values()))
    before = [row | {"mark": None, "time_us": 1.0} for row in rows.values()]
    compared = report.compare({"rows": before}, {"rows": list(rows.values())})
    assert [one["contender"] for one in compared] == ["eager", "reference"]


def test_best_is_the_fastest_baseline():
    fields = {"mark": None, "ours": False, "best": None, "ratios": {}}
    times = {"eager": 9.0, "freeze": 4.0, "openvino": 6.0, "cpu": 2.0}
    rows = [fields | {"contender": name, "time_us": time} for name, time in times.items()]
    rows[-1]["ours"] = True
    runner._add_ratios(rows, ("eager", "freeze", "openvino"))
    assert [row["best"] for row in rows] == [None, None, None, "freeze"]
    assert rows[-1]["ratios"]["freeze"] == 2.0


def test_freezing_is_the_global_flag_while_the_graph_is_compiled(monkeypatch):
    from torch._inductor import config

    seen = []

    def compile(module, **options):
        return lambda *inputs: seen.append((config.freezing, options)) or module(*inputs)

    monkeypatch.setattr(torch, "compile", compile)
    inputs = TINY.inputs(2, torch.float32, "cpu")
    call = peers.freeze(baselines.EAGER["token_mlp"], **inputs)
    assert seen == [(True, {"dynamic": False})] and not config.freezing
    with torch.no_grad():
        assert_close_to_rounding(call(), baselines.EAGER["token_mlp"](**inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [TINY, SHIFT, GATE], ids=lambda case: case.op)
@pytest.mark.parametrize("peer", ["onnxruntime", "openvino"])
def test_runtimes_compute_what_eager_does(peer, case, dtype):
    pytest.importorskip(peer)
    if dtype not in peers.PEERS[peer][1]:
        pytest.skip(f"{peer} is not asked for {dtype}")
    rows = measured(case, dtype, against=("eager", peer))
    assert rows[peer]["mark"] is None and rows[peer]["error_ratio"] < 10


def test_the_shift_for_export_is_the_shift():
    x = torch.randn(2, 4, 5, 16)
    assert torch.equal(baselines._shift_by_parts(x), baselines._spatial_shift(x))


@pytest.mark.parametrize(("threads", "clock"), [(1, "process CPU time"), (2, "wall")])
def test_rows_say_threads_and_clock(threads, clock):
    for row in measured(threads=threads).values():
        assert (row["threads"], row["clock"]) == (threads, clock)
        share = row["tflops"] / row["peak_tflops"]
        assert row["share_of_peak"] == pytest.approx(share) and row["peak_tflops"] == 10


def test_one_thread_is_timed_by_its_own_work(monkeypatch):
    now = {"wall": 0.0, "cpu": 0.0}
    clocks = types.SimpleNamespace(
        perf_counter=lambda: now["wall"], process_time=lambda: now["cpu"]
    )
    monkeypatch.setattr(timers, "time", clocks)

    def call():  # waits four times as long as it works
        now["cpu"] += 1.0
        now["wall"] += 5.0

    for threads, microseconds in ((1, 1e6), (2, 5e6)):
        torch.set_num_threads(threads)
        assert timers.host_sampler([call])() == microseconds


@pytest.mark.skipif(not _native.peak_rates(), reason="no code for this CPU's peak")
def test_no_product_beats_the_peak():
    peak, again = _native.peak_rates(), _native.peak_rates.__wrapped__
    a = torch.randn(256, 256)
    measure = timers.host_sampler([lambda: a @ a])
    rates = [(2 * 256**3 / measure() * 1e6, again()["float32"]) for _ in range(5)]
    product, peak_then = map(max, zip(*rates, strict=True))
    assert product < 1.1 * peak_then < 1e12
    assert roofline._rate("cpu", torch.float32, 3) == 3 * peak["float32"]
    assert roofline._rate("cpu", torch.bfloat16, 1) == max(peak.values())
    assert roofline._rate("cpu", torch.float64, 1) == peak["float32"] / 2


def test_without_native_code_the_peak_is_a_librarys_product(monkeypatch):
    monkeypatch.setattr(roofline, "peak_rates", dict)
    monkeypatch.setattr(roofline, "_product_rate", lambda device, dtype: {
        torch.float32: 2.0, torch.bfloat16: 1.0, torch.float64: 0.5}[dtype])  # fmt: skip
    rate = roofline._rate.__wrapped__
    assert [rate("cpu", dtype, 2) for dtype in (torch.bfloat16, torch.float64)] == [2.0, 0.5]


def test_kept_memory_is_that_of_the_saved_tensors():
    x, weight = (torch.randn(8, 8, requires_grad=True) for _ in range(2))

    def forward():
        hidden = (x @ weight).exp()  # kept by exp, and by the product once more
        return hidden.t() * weight

    assert memory.kept_bytes(forward, [x, weight]) == 8 * 8 * 4
    rows = measured(direction="fwd_bwd")
    normed, hidden = 2 * 13 * 16, 2 * 8 * 16
    statistics = 2 * 2 * 13
    assert rows["eager"]["kept_bytes"] == 4 * (normed + 2 * hidden + statistics)
    assert rows["reference"]["kept_bytes"] <= rows["eager"]["kept_bytes"] / 4
    assert measured()["eager"]["kept_bytes"] is None


def test_command_is_told_without_this_machines_folders(monkeypatch):
    argv = ["/home/me/shiftmlp/__main__.py", "bench", "--json=/tmp/a b.json", "--batch", "8"]
    told = "python -m shiftmlp bench '--json=a b.json' --batch 8"
    for name in environment.LIMITS:
        monkeypatch.delenv(name, raising=False)
    assert environment.command(argv) == told
    monkeypatch.setenv("MKL_ENABLE_INSTRUCTIONS", "AVX2")
    assert environment.command(argv) == f"MKL_ENABLE_INSTRUCTIONS=AVX2 {told}"


@pytest.mark.parametrize("vendor", ["amd", "intel", None])
def test_fp32_against_eager_carries_its_remark_on_amd(monkeypatch, vendor):
    monkeypatch.setattr(environment, "cpu_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    for dtype in (torch.float32, torch.bfloat16):
        table = report.case_table(list(measured(dtype=dtype).values()))
        assert ("AVX2 path on AMD" in table) == (vendor == "amd" and dtype == torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_a_case(dtype):
    rows = measured(MODEL, dtype)
    assert set(rows) == {"eager", "reference"}
    assert all(row["mark"] is None and row["op"] == "model" for row in rows.values())
    assert MODEL.flops(2, "fwd") > 2 * 4 * 2 * 16 * (2 * 16 + 8 * 16)  # its products of one block


def test_the_command_takes_threads_and_models(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_command, "describe", lambda device: {})
    monkeypatch.setattr(bench_command, "SECONDS", dict.fromkeys((False, True), 0.0))
    monkeypatch.setattr(bench_command, "select", lambda *args, **kwargs: [TINY])
    monkeypatch.setattr(bench_command, "ModelCase", lambda name: MODEL)
    path = tmp_path / "bench.json"
    given = ["--device=cpu", "--dtype=fp32", "--batch=1", "--quick", f"--json={path}"]
    assert cli.main(["bench", *given, "--threads=1,2", "--backend=reference"]) == 0
    assert [row["threads"] for row in report.load(path)["rows"]] == [1, 1, 2, 2]
    assert cli.main(["bench", *given, "--models=s2mlp_deep"]) == 0
    rows = report.load(path)["rows"]
    assert [row["contender"] for row in rows] == ["eager", "auto"]


def test_older_files_say_their_threads_once(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(
        f'{{"schema": "{report.SCHEMA}", "environment": {{"threads": 2}}, "rows": [{{}}]}}'
    )
    assert report.load(path)["rows"] == [{"threads": 2}]


@pytest.mark.parametrize("peer", ["onnxruntime", "openvino"])
def test_peers_are_optional_packages(monkeypatch, peer):
    monkeypatch.setitem(sys.modules, peer, None)  # as if it were not installed
    assert measured(against=(peer,))[peer]["mark"] == "absent"
