"""S2-MLP's block: our plain one. Published ports shift in place and compute something else."""

from ..nn._fused import s2_block
from ._family import Family

family = Family(
    home=__name__,
    originals=("shiftmlp.nn._plain.PlainS2Block",),
    forward=s2_block,
    mlps=("mlp_shift", "mlp_channels"),
    norms=("norm1", "norm2"),
    # Odd sides that differ: a kernel that confuses them or forgets a border is seen.
    sample=lambda block: (2, 7, 9, block.mlp_shift.fc1.in_features),
    shifts=True,
)
__getattr__ = family.swapped_class
