"""What issue.py counts in the machine code of the kernels: a loop, and which way through it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Region:
    """A loop that holds all instructions of ``has`` and none of ``lacks``, the innermost one or the
    outermost; the weights of instructions on the way, and others ``inside`` of its inner loops;
    those of which do not count that hold one of ``apart``. Instructions are told by how they begin;
    "" is all of them."""

    has: str
    weights: dict[str, int] = field(default_factory=dict)
    lacks: str = "none"
    outermost: bool = False
    apart: str = "none"
    inside: dict[str, int] = field(default_factory=dict)


# What is 16 bits wide is bfloat16, and there is nothing to divide.
BF16 = {"F2FP.BF16": 4, "F2FP.F16": -9, "HADD2": -9, "PRMT": 1, "IMAD.U32": 1}
BF16 |= {"CALL": -9, "WARPSYNC": -99}
HALVES = {"IMAD.U32": 3, "SHF.L.U32": 3, "LOP3.LUT": 3}  # of bfloat16, as floats
FLOAT = {"HADD2": -9, "F2FP": -9, "PRMT": -1}
GATHER = {"LDGSTS.E.BYPASS.128": 99, "IMAD.WIDE.U32": 9, "IMAD.HI": 9}
NORM = {"FADD": 9, "FFMA": 9, "FMUL": -5, "LDG.E.": -99}
ALL = {"FFMA": 99, "FMUL": 99, "MUFU": -9999}  # columns, each of which is scaled
PLAIN = {"MUFU": -99, "LDG": -99, "STG": -99}
GELU = {"MUFU.EX2": 99, "LDG": -999, "STG": -999}
SLOPE = {"MUFU.EX2": 99}
INNER = {"MUFU.EX2": 99, "LDG": -999, "STG": 99}


def part_of(dtype: dict[str, int]) -> dict[str, Region]:
    """Of the portable product."""
    return {
        "chunk": Region("HMMA", {"HMMA": 99, "LDGSTS.E.BYPASS.128": 50}, apart=""),
        "gather": Region("LDGSTS", GATHER, "HMMA"),
        "side": Region(
            "FMUL LDG ST.E", dtype | {"LDG.E.128": 99}, "HMMA STG", outermost=True, apart="ST.E"
        ),
        "piece": Region("FMUL ST.E", dtype | NORM, "HMMA STG"),
        "plain": Region("MUFU.EX2 STS", {"STS": 99} | dtype | PLAIN, "HMMA"),
        "gelu": Region("MUFU.EX2 STS", {"STS": 99} | dtype | GELU, "HMMA"),
        "slope": Region("MUFU.EX2 STS", {"STS": 99} | dtype | SLOPE, "HMMA"),
        "inner": Region("MUFU.EX2 STS", {"STS": 99} | dtype | INNER, "HMMA"),
        "store": Region("STG LDS", {"STG.E.128": 99} | dtype | PLAIN, "HMMA MUFU.EX2"),
        "read": Region("STG LDS", {"STG.E.128": 99, "LDG.E.128": 99} | dtype, "HMMA MUFU.EX2"),
    }  # fmt: skip


def part_of_sm90(weights: dict[str, int]) -> Region:
    return Region("HGMMA STSM", BF16 | {"STSM": -99} | weights, apart="HGMMA,STG")


def passes_of(type_: str, dtype: dict[str, int]) -> dict[str, dict[str, Region]]:
    """Over rows: of as many columns as a warp or a thread reads at a time. A row is held, not read
    again, and its vectors are of its type."""

    def row(has: str, others: dict[str, int], lacks: str = "none") -> Region:
        return Region(f"LDG {has}", {"CALL": -999} | dtype | others, lacks, True)

    return {
        f"norm_kernel<{type_}>": {
            "moments": row("STG", {"SHFL": 99, "FADD": 99, "STG.E.128": -9999, "CS2R": -99}),
            "norm": row("STG", {"MUFU": -999, "FMUL": 99, "FFMA": -30, "CS2R": -30}),
        },
        f"activation_backward_kernel<{type_}>": {"row": row("MUFU.EX2", SLOPE)},
        f"sum_columns_kernel<{type_}>": {
            "row": row("", {"FADD": 99, "FMUL": -99}, "SHFL"),
            "product": row("", {"FADD": 99, "FMUL": 9}, "SHFL"),
        },
        f"norm_backward_kernel<{type_}>": {
            "means": row("SHFL", {"FADD": 99}, "STG"),
            "row": row("STG", {"FADD": 99, "STG": 99}, "SHFL"),
            "products": row("STG", {"FADD": 99, "FFMA": 9, "STG": -9999}, "SHFL"),
            "sums": row("STG", {"FADD": 99, "FFMA": -99}, "SHFL"),
        },
    }


REGIONS = {
    "product_sm90_kernel<__nv_bfloat16": {
        "chunk": Region("HGMMA", {"HGMMA": 99}),
        "gather": Region("LDGSTS", GATHER, "HGMMA"),
        "plain": part_of_sm90(PLAIN | ALL),
        "gelu": part_of_sm90(GELU),
        "slope": part_of_sm90(SLOPE),
        "inner": part_of_sm90(GELU | {"STSM": 99}),
        "read": part_of_sm90(PLAIN | ALL | {"LDG": 9}),
        "floats": part_of_sm90(PLAIN | {"STG": 99}),
        "norm": part_of_sm90({"SHFL": 9}),
    },
    "token_linear_sm90_kernel<__nv_bfloat16": {
        "tile": Region("HGMMA", BF16 | {"HGMMA": 99, "LDG.E.U16": -50}),
    },
    "token_mlp_sm90_kernel<__nv_bfloat16": {
        "chunk": Region("HGMMA", BF16 | {"HGMMA": 99, "MUFU.EX2": 9}),
        "tile": Region(
            "HGMMA STSM", BF16 | {"HGMMA": 99, "MUFU.EX2": 9, "LDG.E.U16": -50}, apart="HGMMA"
        ),
    },
    "token_mlp_backward_sm90_kernel<__nv_bfloat16": {
        "chunk": Region("HGMMA", BF16 | {"HGMMA": 99, "MUFU.EX2": 9}),
        "tile": Region(
            "HGMMA STSM", BF16 | {"LDG.E.U16": -50, "STSM": 9}, outermost=True, apart="HGMMA"
        ),
    },
    "product_kernel<__nv_bfloat16": part_of(BF16),
    "product_kernel<float": part_of(FLOAT),
    **passes_of(
        "__nv_bfloat16", {"F2FP.BF16": 99, "LDG.E": 9, "LDG.E.128": 1, "HADD2": -9} | HALVES
    ),
    **passes_of("float", {"LDG.E": 9, "LDG.E.128": 9, "HADD2": -9}),
    "sum_parts_kernel": {"parts": Region("LDG", {"LDG": 9}, outermost=True)},
    "spatial_shift_kernel<Bits128>": {"pixels": Region("STG", {"STG": 9})},
    "spatial_shift_keep_backward_kernel<__nv_bfloat16, Bits128>": {
        "pixels": Region("STG", BF16 | {"STG": 9})
    },
    "spatial_shift_keep_backward_kernel<float, Bits128>": {"pixels": Region("STG", {"STG": 9})},
}
