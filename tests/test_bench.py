"""The benchmark measures what it says: work is counted, wrong kernels seen, files always valid."""

import importlib.util
import json
import math
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shiftmlp import cli
from shiftmlp.bench import baselines, cases, environment, overhead, report, roofline, runner, timers
from shiftmlp.cli import bench as bench_command

TINY = {op: cases.Case(op, "tiny", sizes) for op, sizes in {
    "token_mlp": (("S", 13), ("C", 16), ("D", 8)),
    "token_linear": (("S", 13), ("C", 16)),
    "token_gate": (("S", 13), ("C", 16)),
    "shift_mlp": (("H", 4), ("W", 5), ("C", 16), ("D", 16)),
    "shift_linear": (("H", 4), ("W", 5), ("C", 16)),
    "spatial_shift": (("H", 4), ("W", 5), ("C", 16)),
    "channel_mlp": (("S", 5), ("C", 16), ("D", 32)),
}.items()}  # fmt: skip
QUICK = runner.Settings(against=("eager", "padded"), backends=("reference",), seconds=0.0)
NAMES = {
    "op", "case", "batch", "dtype", "direction", "contender", "time_us", "tflops", "gbs",
    "share_of_floor", "error_ratio", "ratios",
}  # fmt: skip


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Plenty of speed: what a shared machine reaches in a test decides nothing."""
    huge = roofline.Roofline(1e13, 1e12, 1e15, 1e15, "test")
    monkeypatch.setattr(runner, "roofline", lambda *args: huge)
    monkeypatch.setattr(timers, "SHORTEST_SAMPLE", 1e-4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def job(op="token_mlp", direction="fwd", dtype=torch.float32):
    return runner.Job(TINY[op], 2, dtype, direction)


def measured(op="token_mlp", direction="fwd", dtype=torch.float32, settings=QUICK):
    rows, left_out, failed = runner.measure(job(op, direction, dtype), settings)
    return {row["contender"]: row for row in rows}, left_out, failed


@pytest.mark.parametrize("direction", cases.DIRECTIONS)
@pytest.mark.parametrize("op", TINY)
def test_every_contender_is_right(op, direction):
    rows, left_out, failed = measured(op, direction)
    padded = {"padded"} if op in baselines.TOKEN_OPS else set()
    assert set(rows) == {"eager", "reference"} | padded
    for row in rows.values():
        assert row["mark"] is None and row["error_ratio"] <= 2
        assert NAMES <= set(row)
    assert not left_out and not failed


@pytest.mark.parametrize("op", TINY)
def test_flops_are_those_that_pytorch_counts(op):
    case, inputs = TINY[op], TINY[op].inputs(2, torch.float32, "cpu")
    eager = baselines.Contender("eager", baselines.EAGER[op])
    for direction in ("fwd", "fwd_bwd"):
        call = runner.prepare(eager, inputs, direction)
        with FlopCounterMode(display=False) as counter:
            call()
        assert case.flops(2, direction) == counter.get_total_flops()


def test_bytes_are_each_input_once_and_the_result_once():
    # Mixer-B/16 in bf16: x and y are 196 * 768 each an image.
    case = cases.select(["token_mlp"])[0]
    weights = 2 * 196 * 384 + 384 + 196 + 2 * 768
    assert case.bytes(3, "fwd", 2) == 2 * (2 * 3 * 196 * 768 + weights)
    shift = cases.select(["spatial_shift"])[0]
    assert shift.bytes(3, "bwd", 2) == shift.bytes(3, "fwd", 2) == 2 * 2 * 3 * 14 * 14 * 384


def test_cases_are_of_every_op_and_named_once():
    assert {case.op for case in cases.CASES} == set(cases.SHAPES) == set(baselines.EAGER)
    assert len({(case.op, case.name) for case in cases.CASES}) == len(cases.CASES)
    assert [case.model for case in cases.select(["token_mlp"], first_only=True)] == ["Mixer-B/16"]


@pytest.mark.parametrize("fault", [lambda y: y * 1.01, lambda y: y.where(y < 3, math.nan)])
def test_a_wrong_kernel_is_marked_and_fails_the_command(monkeypatch, tmp_path, capsys, fault):
    right = baselines.functional.token_mlp
    monkeypatch.setattr(
        baselines.functional, "token_mlp", lambda *args, **kwargs: fault(right(*args, **kwargs))
    )
    rows, *_ = measured(direction="fwd_bwd", dtype=torch.bfloat16)
    assert rows["reference"]["mark"] == "wrong" and rows["reference"]["ratios"] == {}
    assert rows["eager"]["mark"] is None
    assert command(monkeypatch, tmp_path, "--backend=reference") == 1
    assert "WRONG" in capsys.readouterr().out


def test_moved_data_must_be_exact(monkeypatch):
    right = baselines.functional.spatial_shift
    monkeypatch.setattr(
        baselines.functional, "spatial_shift", lambda *args, **kw: right(*args, **kw) + 1e-9
    )
    rows, *_ = measured("spatial_shift")
    assert rows["reference"]["mark"] == "wrong"


@pytest.mark.parametrize("time_us", [-1.0, 0.0, 1e-6])
def test_a_time_that_cannot_be_is_marked(monkeypatch, time_us):
    timing = timers.Timing(time_us, time_us, time_us, 5)
    monkeypatch.setattr(runner, "interleave", lambda samplers, _: dict.fromkeys(samplers, timing))
    rows, *_ = measured()
    assert {row["mark"] for row in rows.values()} == {"impossible"}
    assert not any(row["ratios"] for row in rows.values())


def test_refusals_and_failures_are_told_apart(monkeypatch, tmp_path):
    def refuse(**_):
        raise NotImplementedError("not today")

    def fail(**_):
        raise RuntimeError("out of luck")

    for function, verb, failed in ((refuse, "refuses: not today", 0), (fail, "fails: out of", 1)):
        monkeypatch.setattr(baselines, "ours", lambda op, backend, f=function: f)
        rows, left_out, found = measured()
        assert set(rows) == {"eager", "padded"} and found == failed
        assert len(left_out) == 1 and verb in left_out[0]
        assert command(monkeypatch, tmp_path, "--backend=reference") == failed


def test_turns_are_taken():
    order = []
    samplers = {name: lambda name=name: order.append(name) or len(order) for name in "ABC"}
    timings = timers.interleave(samplers, seconds=0)
    assert order == list("ABC") * (1 + timers.MIN_SAMPLES)
    # The warm-up turn is not counted, which leaves 4, 7, 10, 13 and 16 to A.
    assert timings["A"] == (10, 6.4, 13.6, 5)


def command(monkeypatch, tmp_path, *options) -> int:
    monkeypatch.setattr(bench_command, "select", lambda ops, first_only: [TINY["token_mlp"]])
    monkeypatch.setattr(bench_command, "SECONDS", dict.fromkeys((False, True), 0.0))
    given = ["--quick", "--device=cpu", "--batch=2", f"--json={tmp_path / 'bench.json'}"]
    return cli.main(["bench", "token_mlp", *given, *options])


def test_the_command_writes_a_bench_file(monkeypatch, tmp_path, capsys):
    given = "--dtype=fp32,bf16", "--direction=fwd,bwd", "--backend=auto,reference,cuda"
    assert command(monkeypatch, tmp_path, *given) == 0
    document = report.load(tmp_path / "bench.json")
    assert document["schema"] == report.SCHEMA
    assert document["environment"]["torch"] == torch.__version__
    assert len(document["rows"]) == 2 * 2 * 3  # eager, auto, reference; no cuda kernel on a CPU
    assert all("cuda refuses" in sentence for sentence in document["left_out"])
    for row in document["rows"]:
        assert row["ratios"].keys() == (set() if row["contender"] == "eager" else {"eager"})
    row = document["rows"][0]
    assert row["tflops"] == pytest.approx(TINY["token_mlp"].flops(2, "fwd") / row["time_us"] / 1e6)
    assert "eager" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [tmp_path / "bench.json"]


def test_ctrl_c_keeps_every_finished_case(monkeypatch, tmp_path, capsys):
    measure, calls = runner.measure, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(runner, "measure", interrupted)
    given = "--backend=reference", "--direction=fwd,bwd,fwd_bwd"
    assert command(monkeypatch, tmp_path, *given) == 130
    rows = report.load(tmp_path / "bench.json")["rows"]
    assert [row["direction"] for row in rows] == ["fwd", "fwd", "bwd", "bwd"]
    assert f"4 rows in {tmp_path / 'bench.json'}" in capsys.readouterr().out


def test_a_failed_write_leaves_the_old_file(monkeypatch, tmp_path):
    file = report.BenchFile(tmp_path / "bench.json", {})
    before = file.path.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "replace", full)
    with pytest.raises(OSError):
        file.add([{"op": "token_mlp"}], [])
    assert file.path.read_text() == before
    assert list(tmp_path.iterdir()) == [file.path]


def test_the_budget_is_kept_and_what_is_left_out_is_said(monkeypatch):
    now = [0.0]

    def measure(job, settings):
        now[0] += 10
        return [{"op": job.case.op}], [], False

    monkeypatch.setattr(runner, "measure", measure)
    file = report.BenchFile(None, {})
    jobs = [job(op) for op in TINY]
    list(runner.run_all(jobs, QUICK, file, budget=35, clock=lambda: now[0]))
    assert [row["op"] for row in file.rows] == list(TINY)[:3]  # a fourth would end at 40
    assert len(file.left_out) == 4 and "no time left within 35 s" in file.left_out[0]


def bench_file(path, mark=None, **times):
    rows = [
        dict.fromkeys(report.KEY, 1)
        | {"contender": name, "time_us": time, "mark": mark, "ours": name != "eager"}
        for name, time in times.items()
    ]
    report.write_atomically(path, json.dumps({
        "schema": report.SCHEMA, "environment": {"threads": 2}, "rows": rows, "left_out": [],
    }))  # fmt: skip
    return str(path)


def test_compare_is_a_gate_for_our_rows(tmp_path, capsys):
    before = bench_file(tmp_path / "a.json", eager=100.0, cuda=50.0, triton=10.0)
    slower = bench_file(tmp_path / "b.json", eager=400.0, cuda=52.0, other=1.0)
    assert cli.main(["compare", before, slower]) == 0
    assert cli.main(["compare", before, slower, "--fail-below=0.97"]) == 1
    assert cli.main(["compare", before, slower, "--fail-below=0.96"]) == 0
    assert "0.96x" in capsys.readouterr().out
    wrong = bench_file(tmp_path / "c.json", "wrong", cuda=10.0)
    assert cli.main(["compare", before, wrong, "--fail-below=0.97"]) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "other"}', "\x80"])
def test_compare_refuses_other_files(tmp_path, capsys, text):
    good = bench_file(tmp_path / "a.json", cuda=1.0)
    (tmp_path / "b.json").write_text(text)
    assert cli.main(["compare", good, str(tmp_path / "b.json")]) == 2
    assert cli.main(["compare", good, str(tmp_path / "none.json")]) == 2
    assert cli.main(["compare", good, bench_file(tmp_path / "c.json", triton=1.0)]) == 2
    assert "b.json must" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--dtype=int8", "--batch=0", "--backend=gpu", "--direction=up"])
def test_unknown_options_are_refused(monkeypatch, tmp_path, option):
    with pytest.raises(SystemExit) as exit:
        command(monkeypatch, tmp_path, option)
    assert exit.value.code == 2


def test_rates_of_this_machine_are_plausible():
    found = roofline.roofline("cpu", torch.float32, 2**20)
    assert 1e8 < found.rate < 1e14 and 1e7 < found.bandwidth < 1e13
    assert found.floor(int(found.rate), 0) == pytest.approx(1e6, rel=1e-3)
    assert found.impossible(1.0, int(found.rate), 0) and not found.impossible(1e6, 1, 1)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("AMD EPYC, 2 cores", "cpu-amd-epyc-2c"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz, 8 cores", "cpu-intel-xeon-8c"),
    ],
)
def test_slug(monkeypatch, name, slug):
    monkeypatch.setattr(environment, "device_name", lambda device: name)
    assert environment.slug("cpu") == slug


@pytest.mark.parametrize("op", TINY)
def test_a_call_costs_little_above_its_kernel(op):
    # Twice the limit, as this machine may be shared; benchmarks/test_overhead.py holds the limit.
    assert min(overhead.path_us(op) for _ in range(3)) <= 2 * overhead.LIMIT_US


def test_a_step_on_a_gpu_machine_is_logged_and_ended_in_time(tmp_path):
    path = environment.ROOT / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu", path)
    gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu)
    assert gpu.step("good", ["-c", "print('built')"], 20, tmp_path) == 0
    assert (tmp_path / "good.log").read_text() == "built\n"
    assert gpu.step("bad", ["-c", "raise SystemExit(3)"], 20, tmp_path) == 3
    began = time.monotonic()
    hanging = "import time; print('half'); time.sleep(60)"
    assert gpu.step("slow", ["-c", hanging], 2, tmp_path) != 0
    assert time.monotonic() - began < 30
    assert (tmp_path / "slow.log").read_text().startswith("half\n")
