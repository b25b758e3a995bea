"""The CPU's whole table: the ops of published models, then whole models, each beside every peer.

``pip install 'shiftmlp[peers]'`` brings ONNX Runtime and OpenVINO; without them their rows say so.
Further options go to both runs of ``python -m shiftmlp bench``: ``--budget`` holds for each, and
``--json`` is not for here, as each writes a file of its own.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shiftmlp.cli import main  # noqa: E402

OPS = ["token_mlp,token_linear,shift_mlp,channel_mlp", "--batch=1,8,32", "--direction=fwd,fwd_bwd"]
MODELS = ["--models=mixer_b16,resmlp_s12,resmlp_s24,s2mlp_deep", "--batch=1,8"]
COMMON = ["--device=cpu", "--dtype=fp32,bf16", "--threads=1,2", "--backend=auto"]

if __name__ == "__main__":
    sys.exit(max(main(["bench", *run, *COMMON, *sys.argv[1:]]) for run in (OPS, MODELS)))
