"""All that planted_defects.py and the tables of bugs would change is there, and once."""

import emulator
import passes_defects
import planted_defects
import product_norm_bugs
import product_sm90_bugs
import pytest
import test_hopper
import test_product_defects
import token_mlp_backward_bugs

DEFECTS = planted_defects.DEFECTS | planted_defects.CUDA_DEFECTS


def bugs_of(planted: dict) -> dict:
    return {source: bugs for source, (bugs, _) in planted.items()}


BUGS = bugs_of(test_product_defects.PLANTED) | passes_defects.PLANTED
SM90 = bugs_of(test_hopper.PLANTED) | {
    "product_sm90.cu": product_sm90_bugs.BUGS | product_norm_bugs.BUGS,
    "token_mlp_backward_sm90.cu": token_mlp_backward_bugs.BUGS,
}


@pytest.mark.parametrize("name", DEFECTS)
def test_text_is_there(name):
    defect = DEFECTS[name]
    assert defect.right in (planted_defects.ROOT / defect.file).read_text()


@pytest.mark.parametrize("source", [*BUGS, *SM90])
def test_text_of_every_bug_is_there_once(source):
    for bug, (right, _) in (BUGS | SM90)[source].items():
        file = emulator.holder(source, right) if source in SM90 else source.rpartition("/")[2]
        text = (planted_defects.ROOT / "csrc/cuda" / file).read_text()
        assert text.count(right) == 1, f"{bug}: {text.count(right)} times in {file}"
