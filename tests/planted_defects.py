"""Plants known defects, one at a time, in a copy of the package, and demands that a test fails.

``python tests/planted_defects.py [--cuda | NAME ...]``; those of the CUDA adapters, each of which
has to be compiled, are planted with ``--cuda`` alone. A defect that no test notices is a hole in
the suite, and the program exits with 1. The list follows what went wrong in such kernels before.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cuda_defects

ROOT = Path(__file__).parents[1]


class Defect(NamedTuple):
    file: str
    right: str
    wrong: str
    tests: str  # what to run: a pytest file and, behind a blank, its -k expression


OPS = "shiftmlp/ops"
MOVE = f"{OPS}/spatial_shift/reference.py"
MATH = f"{OPS}/_math.py"
TRITON = f"{OPS}/spatial_shift/triton_kernels.py"
TRITON_MATH = f"{OPS}/_triton_math.py"
TOKENS = f"{OPS}/_triton_tokens.py"
TOKEN_MLP = f"{OPS}/token_mlp/triton_kernels.py"
GEMM = f"{OPS}/_triton_gemm.py"

DEFECTS = {
    "shift by two instead of one": Defect(
        "shiftmlp/shift.py", "Shift(((1, 0), (-1, 0)", "Shift(((2, 0), (-2, 0)",
        "test_shift.py replicate",
    ),
    "group edge off by one": Defect(
        "shiftmlp/shift.py", "((c + 1) * n - 1) // C", "(c * n) // C", "test_shift.py floor"
    ),
    "H and W swapped": Defect(
        MOVE, "zip(step, x.shape[-3:-1]", "zip(step[::-1], x.shape[-3:-1]", "test_shift.py index"
    ),
    "border zeroed instead of kept": Defect(
        MOVE, 'x if border == "keep" else torch.zeros_like(x)', "torch.zeros_like(x)",
        "test_shift.py index",
    ),
    "border gradient without its second term": Defect(
        MOVE, "return moved + rows.join", "return moved + 0 * rows.join", "test_shift.py adjoint"
    ),
    "Triton: last row not written": Defect(
        TRITON, "y.to(y_ptr.dtype.element_ty), mask=within)",
        "y.to(y_ptr.dtype.element_ty), mask=within & (h < H - 1))",
        "test_kernels.py triton and good and s2-odd",
    ),
    "Triton: 32-bit row offset": Defect(
        TRITON, "b * sB + h.to(tl.int64) * sH", "b * sB + (h * sH.to(tl.int32)).to(tl.int64)",
        "test_memory.py 64_bits and spatial_shift-triton",
    ),
    "Triton: tokens beyond the last are read": Defect(
        TOKENS, "within = (s < S) & (c < C)\n", "within = c < C\n",
        "test_memory.py guard and triton-end",
    ),
    "Triton: channels beyond the last are read": Defect(
        TOKENS, "within = (s < S) & (c < C)\n", "within = s < S\n",
        "test_memory.py nothing and token_gate_backward-triton",
    ),
    "Triton: statistics of another image": Defect(
        TOKENS, "tl.load(o.rstd + b * S + s", "tl.load(o.rstd + s",
        "test_kernels.py triton and good and token_gate-triton-gmlp",
    ),
    "Triton: stride of the transposed weight": Defect(
        TOKENS, "s[:, None] * T + out if TRANSPOSED", "s[:, None] * S + out if TRANSPOSED",
        "test_kernels.py triton and good and token_linear_backward and fewer and float32",
    ),
    "Triton: last piece of tokens unmasked": Defect(
        TOKEN_MLP, "tl.load(b2_ptr + at, mask=at < T, other=0.0)", "tl.load(b2_ptr + at)",
        "test_memory.py guard and triton-end",
    ),
    "Triton: bias of the wrong token": Defect(
        TOKEN_MLP, "b2_ptr + at, mask=at < T", "b2_ptr + (at + 1) % T, mask=at < T",
        "test_kernels.py triton and good and token_mlp-triton-odd and float16",
    ),
    "Triton: statistics written beyond the last row": Defect(
        TRITON_MATH, "tl.store(rstd_ptr + row, rstd, mask=row < R)",
        "tl.store(rstd_ptr + row, rstd)",
        "test_memory.py nothing and token_mlp-triton-mixer",
    ),
    "Triton: variance sums beyond the last channel": Defect(
        TRITON_MATH, "apart = tl.where(within, x - (tl.sum(x, 1) / C)[:, None], 0.0)",
        "apart = x - (tl.sum(x, 1) / C)[:, None]",
        "test_kernels.py triton and good and token_gate_backward and gmlp and float32",
    ),
    "Triton: channels beyond the last are summed": Defect(
        GEMM, "comes = (m < M) & (k < K)", "comes = m < M",
        "test_memory.py nothing and channel_mlp-triton-mixer",
    ),
    "Triton: rows beyond the last are summed": Defect(
        GEMM, "end = tl.minimum((part + 1) * rows, M)", "end = (part + 1) * rows",
        "test_memory.py nothing and shift_linear_backward-triton-odd",
    ),
    "Triton: a part of a sum dropped": Defect(
        GEMM, "max(1, triton.cdiv(M, rows)) if rows", "max(1, M // max(1, rows)) if rows",
        "test_triton_channels.py parts",
    ),
    "Triton: a launcher waits for the device": Defect(
        TRITON_MATH, "new_empty(parts.shape[1:], dtype=dtype)",
        "new_empty(parts.shape[1:], dtype=parts.sum().item() and dtype)",
        "test_triton_integration.py launchers and token_linear",
    ),
    "epsilon outside the root": Defect(
        MATH, "torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)",
        "(torch.rsqrt(x.square().mean(-1, keepdim=True)) + eps)",
        "test_gradients.py plain and token_linear",
    ),
    "unbiased variance": Defect(
        MATH, "x.square().mean(-1, keepdim=True)", "x.var(-1, keepdim=True)",
        "test_gradients.py gradcheck and token_linear",
    ),
    "tanh for erf": Defect(
        MATH, "return F.gelu(x)\n", 'return F.gelu(x, approximate="tanh")\n',
        "test_gradients.py plain and token_mlp",
    ),
    "bias before the wrong transpose": Defect(
        f"{OPS}/token_linear/reference.py",
        "return finish(F.linear(normed.mT, weight, bias).mT, scale, residual)",
        "return finish((normed.mT @ weight.mT).mT + bias[: normed.shape[-1]], scale, residual)",
        "test_gradients.py plain and token_linear",
    ),
    "residual added twice": Defect(
        MATH, "y = residual + y", "y = residual + y + residual", "test_gradients.py token_linear"
    ),
    "scale forgotten in the backward": Defect(
        MATH, "(dy if scale is None else dy * scale)", "dy", "test_gradients.py token_linear"
    ),
    "bias gradient summed over the wrong axis": Defect(
        MATH, "flatten(0, -2).sum(0)", "flatten(0, -2).sum(-1)", "test_gradients.py token_linear"
    ),
    "result with the strides of a transposed input": Defect(
        MATH, "return y.contiguous()", "return y", "test_kernels.py layout and token_linear"
    ),
    "gradient computed that nobody asked for": Defect(
        MATH, "dbias = sum_leading(dy).to(dy.dtype) if needs_bias else None",
        "dbias = sum_leading(dy).to(dy.dtype)\n    dbias.fill_(7)",
        "test_gradients.py gradcheck and token_linear-bias",
    ),
    "incoming gradient changed in place": Defect(
        MATH, "dtype, x = dy.dtype, x.to(at_least_float32(x.dtype))",
        "dtype, x = dy.mul_(1.01).dtype, x.to(at_least_float32(x.dtype))",
        "test_kernels.py shift_linear_backward and stay",
    ),
    "post-norm forgotten in the backward": Defect(
        f"{OPS}/_mlp.py", 'if post_norm != "none":\n        wanted', "if False:\n        wanted",
        "test_gradients.py gradcheck and channel_mlp-post",
    ),
    "forward-mode tangent dropped": Defect(
        f"{OPS}/_op.py", "raise NotImplementedError(f\"{self.name} has no forward-mode",
        "print(f\"{self.name} has no forward-mode", "test_gradients.py forward_mode",
    ),
    "second derivative dropped": Defect(
        f"{OPS}/_differentiable.py", "if torch.is_grad_enabled() and _any_requires_grad(*inputs):\n"
        "                # A second", "if False:\n                # A second",
        "test_gradients.py second",
    ),
}  # fmt: skip
CUDA_DEFECTS = {name: Defect(*defect) for name, defect in cuda_defects.DEFECTS.items()}


def plant(defect: Defect, copy: Path) -> None:
    path = copy / defect.file
    text = path.read_text()
    if text.count(defect.right) < 1:
        raise SystemExit(f"{defect.file} does not hold {defect.right!r} any more: renew the list")
    path.write_text(text.replace(defect.right, defect.wrong))


def first_failure(defect: Defect) -> str | None:
    """The first test that fails with the defect in place, or None."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("shiftmlp", "tests", "benchmarks", "csrc"):
            ignored = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", copy)
        # Kept by content: what the defect does not touch is compiled once for all.
        (copy / "build").mkdir()
        (copy / "build/objects").symlink_to(ROOT / "build/objects")
        plant(defect, copy)
        file, _, expression = defect.tests.partition(" ")
        command = [sys.executable, "-m", "pytest", "-x", f"tests/{file}", "-k", expression]
        environment = os.environ | {"PYTHONPATH": str(copy), "CXXFLAGS": "-w"}
        ran = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        if ran.returncode < 0:
            return f"the test process dies by signal {-ran.returncode}"
        if ran.returncode not in (0, 1):
            raise SystemExit(f"pytest could not run {defect.tests}:\n{ran.stdout}{ran.stderr}")
        failures = [line for line in ran.stdout.splitlines() if line.startswith("FAILED")]
        return failures[0].partition("::")[2] if failures else None


def verdict(name: str) -> tuple[bool, str]:
    start = time.perf_counter()
    failure = first_failure((DEFECTS | CUDA_DEFECTS)[name])
    seconds = time.perf_counter() - start
    found = "caught" if failure else "MISSED"
    return failure is None, f"{found}  {name}  ({seconds:.0f} s)  {failure or ''}"


def main(names: list[str]) -> int:
    missed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for is_missed, told in pool.map(verdict, names):
            missed += is_missed
            print(told, flush=True)
    print(f"{len(names) - missed} of {len(names)} defects caught")
    return 1 if missed else 0


if __name__ == "__main__":
    names = list(CUDA_DEFECTS) if sys.argv[1:] == ["--cuda"] else sys.argv[1:]
    sys.exit(main(names or list(DEFECTS)))
