"""What planted_defects.py would change is there, also where only ``--cuda`` plants it."""

import planted_defects
import pytest

DEFECTS = planted_defects.DEFECTS | planted_defects.CUDA_DEFECTS


@pytest.mark.parametrize("name", DEFECTS)
def test_text_is_there(name):
    defect = DEFECTS[name]
    assert defect.right in (planted_defects.ROOT / defect.file).read_text()
