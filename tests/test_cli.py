"""The commands: exit codes, output in a pipe, JSON files, errors in one line, interruption."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from shiftmlp.accelerate import _table
from shiftmlp.cli import COMMANDS, _console, _measure, _models, _photo, demo, gradcheck, main
from shiftmlp.ops import OPS

# Tests name the backend where blocks shall be replaced: "auto" asks the clock, on a busy machine.
TINY = ["--model", "mixer_s16", "--num-blocks", "2", "--embed-dim", "16", "--img-size", "32"]


def run(*argv: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "shiftmlp", *argv]
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_info_in_a_process(tmp_path):
    file = tmp_path / "info.json"
    answer = run("info", "--json", str(file))
    assert answer.returncode == 0 and answer.stderr == ""
    document = json.loads(file.read_text())
    assert set(document["backends"]) == {"cuda", "triton", "cpu", "reference"}
    assert document["backends"]["reference"] == "available"
    assert f"torch: {torch.__version__}" in answer.stdout
    assert list(tmp_path.iterdir()) == [file]


def test_demo_in_a_process_through_timm(tmp_path):
    pytest.importorskip("timm")
    file = tmp_path / "demo.json"
    small = ["--model", "mixer_s32_224", "--num-blocks", "1", "--img-size", "64", "--steps", "1"]
    answer = run("demo", *small, "--backend", "reference", "--json", str(file))
    assert answer.returncode == 0, answer.stderr
    document = json.loads(file.read_text())
    (row,) = document["report"]["rows"]
    assert (row["action"], row["backend"]) == ("replaced", "reference")
    assert 0 < row["error"] <= row["allowed"]
    assert document["scores"]["original"] == document["scores"]["accelerated"]
    assert len(document["seconds"]["inference"]) == len(document["seconds"]["training step"]) == 1
    assert all(0 < share <= 1 for share in document["share_of_blocks"].values())
    # In a pipe every step is a line; results are not mixed with them.
    assert "check 1/1 blocks.0 replaced" in answer.stderr and "\r" not in answer.stderr
    assert "1 replaced: reference" in answer.stdout and "its top 5 classes" in answer.stdout


def test_demo_says_when_nothing_can_get_faster(monkeypatch, capsys):
    for op in OPS.values():
        for backend in [name for name in op.kernels if name != "reference"]:
            monkeypatch.delitem(op.kernels, backend)
    assert main(["demo", *TINY, "--steps", "1", "--batch", "1"]) == 0
    out = capsys.readouterr().out
    assert "Nothing got faster" in out and "same code" in out
    assert "token_mlp and channel_mlp: cuda: has no such kernel; triton: has no" in out


def test_demo_fails_on_a_wrong_kernel(monkeypatch, capsys):
    launch, refuses, slower = OPS["channel_mlp"].kernels["reference"]
    wrong = (lambda *args: launch(*args) * 1.01), refuses, slower
    monkeypatch.setitem(OPS["channel_mlp"].kernels, "reference", wrong)
    assert main(["demo", *TINY, "--steps", "1", "--backend", "reference"]) == 1
    assert "VERIFY_FAILED" in capsys.readouterr().out


def test_an_interrupted_demo_shows_what_was_done(monkeypatch, capsys, tmp_path):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(_measure, "training_step", interrupted)
    file = tmp_path / "demo.json"
    argv = ["demo", *TINY, "--steps", "1", "--backend", "reference", "--json", str(file)]
    assert main(argv) == 130
    out = capsys.readouterr().out
    assert "interrupted" in out and "2 replaced" in out and "inference" in out
    assert "training step" not in out
    assert json.loads(file.read_text())["status"] == 130


def test_explain_and_verify(capsys, tmp_path):
    file = tmp_path / "report.json"
    assert main(["explain", *TINY, "--backend", "reference", "--json", str(file)]) == 0
    assert "2 of 2 blocks would be replaced" in capsys.readouterr().out
    assert len(json.loads(file.read_text())["rows"]) == 2
    assert main(["verify", *TINY, "--backend", "reference", "--dtype", "bf16"]) == 0
    assert "tensors agree" in capsys.readouterr().out
    # gMLP is no family that accelerate knows: there is nothing to verify.
    gmlp = ["--model", "gmlp_s16", "--num-blocks", "1", "--embed-dim", "16", "--img-size", "32"]
    assert main(["verify", *gmlp]) == 1
    assert "nothing to replace" in capsys.readouterr().out


@pytest.mark.parametrize("op", gradcheck.INPUTS)
def test_gradcheck_passes_each_op(op, capsys):
    assert main(["gradcheck", op, "--backend", "reference"]) == 0
    assert capsys.readouterr().out.count(" ok") == len(list(gradcheck.variants(op)))


def test_gradcheck_fails_on_a_wrong_gradient(monkeypatch, capsys, tmp_path):
    launch, refuses, slower = OPS["token_gate_backward"].kernels["reference"]
    wrong = (lambda *args: [2 * grad for grad in launch(*args)]), refuses, slower
    monkeypatch.setitem(OPS["token_gate_backward"].kernels, "reference", wrong)
    file = tmp_path / "rows.json"
    assert main(["gradcheck", "token_gate", "--backend", "reference", "--json", str(file)]) == 1
    assert "WRONG" in capsys.readouterr().out
    assert all(row["result"].startswith("WRONG") for row in json.loads(file.read_text())["rows"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["demo", "--model", "mixr_s16"], "no model is named 'mixr_s16'; near: mixer_s16"),
        (["explain", *TINY[:-1], "33"], "img_size must be divisible"),
        (["gradcheck", "tokn_mlp"], "no op is named 'tokn_mlp'"),
        (["info", "--json", "/nowhere/info.json"], "cannot write /nowhere/info.json"),
        (["demo", *TINY, "--image", "/nowhere.jpg"], "/nowhere.jpg"),
        (["demo", *TINY, "--image", __file__], "cannot identify image"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(argv, words, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{argv[0]}: ") and words in err and err.count("\n") == 1


@pytest.mark.parametrize("argv", [[], ["fly"], ["demo", "--batch", "0"], ["demo", "--dtype", "x"]])
def test_what_argparse_refuses_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as exit:
        main(argv)
    assert exit.value.code == 2 and "usage" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_exists(name, capsys):
    with pytest.raises(SystemExit) as exit:
        main([name, "--help"])
    assert exit.value.code == 0 and COMMANDS[name].split()[0] in capsys.readouterr().out


def test_ctrl_c_exits_with_130(monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(_models, "settle", interrupted)
    assert main(["explain", *TINY]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_reader_may_leave_early():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "shiftmlp", "info"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch, capsys):
    with _console.Progress("work", 2) as progress:
        progress.step("one")
    assert capsys.readouterr().err == "work 1/2 one\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with _console.Progress("work", 2) as progress:
        progress.step("one")
    err = capsys.readouterr().err
    assert "[############------------] 1/2 one" in err and "\n" not in err and err[-1] == "\r"


def test_a_table_is_aligned_and_drops_empty_columns():
    text = _table.plain_table(
        "title", ["a", "b", "c"], [["long", "", "1"], ["x", "", "2"]], ["end"]
    )
    assert text == "title\na     c\nlong  1\nx     2\nend"


def test_tables_on_a_terminal_have_no_colour_under_no_color(monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    _table.print_table("title", ["a"], [["[1]"]], ["note [x]"])
    out = capsys.readouterr().out
    assert "note [x]" in out and "[1]" in out and not re.search(r"\x1b\[[39][0-7]m", out)


def test_pictures_are_photographs_or_drawn(monkeypatch):
    pytest.importorskip("matplotlib")
    photo, shows = _photo.picture(None, 32)
    assert photo.shape == (3, 32, 32) and "Grace Hopper" in shows and photo.std() > 0.1
    monkeypatch.setitem(sys.modules, "matplotlib.cbook", None)
    drawn, shows = _photo.picture(None, 32)
    assert drawn.shape == (3, 32, 32) and "drawn" in shows and drawn.std() > 0.1


def test_the_share_of_blocks_is_measured():
    class Sleeps(torch.nn.Module):
        def forward(self, x):
            import time

            time.sleep(0.02)
            return x * 2

    model = torch.nn.Sequential(Sleeps(), Sleeps(), Sleeps(), Sleeps())
    x = torch.ones(2, 3, requires_grad=True)
    share = _measure.share_of(list(model[:2]), lambda: model(x).sum().backward(), x.device)
    assert 0.3 < share < 0.7


def test_gains_are_of_medians():
    assert demo.gain([(4.0, 1.0), (2.0, 1.0), (2.0, 8.0)]) == 2.0
