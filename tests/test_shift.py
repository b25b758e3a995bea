"""``Shift`` against an index loop, against the code of its sources, and against its adjoint."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from samples import SHIFTS

from shiftmlp import Shift
from shiftmlp import functional as SF

MAPS = [(5, 7, 21), (4, 3, 10), (1, 6, 13), (6, 1, 64), (1, 1, 5), (2, 3, 1)]


def by_index(x, shift):
    """The definition, one element at a time."""
    H, W, C = x.shape[-3:]
    y = torch.zeros_like(x)
    for h in range(H):
        for w in range(W):
            for c in range(C):
                dy, dx = shift.step(c, C)
                h0, w0 = h - dy, w - dx
                if shift.border == "wrap":
                    h0, w0 = h0 % H, w0 % W
                inside = 0 <= h0 < H and 0 <= w0 < W
                if inside:
                    y[..., h, w, c] = x[..., h0, w0, c]
                elif shift.border == "keep":
                    y[..., h, w, c] = x[..., h, w, c]
    return y


def distinct(*shape):
    """Every element another integer, so that no two can be mistaken."""
    return torch.randperm(torch.Size(shape).numel()).reshape(shape).double()


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)
def test_every_shift_is_its_index_loop(shift, shape):
    x = distinct(2, *shape)
    assert torch.equal(SF.spatial_shift(x, shift, backend="reference"), by_index(x, shift))


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)
def test_adjoint_is_exact_in_integers(shift, shape):
    """<S x, y> == <x, S' y>, to the last unit."""
    x = torch.randint(-9, 10, (2, *shape)).double().requires_grad_()
    y = torch.randint(-9, 10, (2, *shape)).double()
    shifted = SF.spatial_shift(x, shift, backend="reference")
    (back,) = torch.autograd.grad(shifted, x, y)
    assert (shifted * y).sum().item() == (x * back).sum().item()


def test_keep_of_one_step_is_replicate_padding():
    x = distinct(1, 5, 6, 8)
    padded = F.pad(x.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1)
    down, up = padded[:, :-2, 1:-1, :2], padded[:, 2:, 1:-1, 2:4]
    right, left = padded[:, 1:-1, :-2, 4:6], padded[:, 1:-1, 2:, 6:]
    assert torch.equal(SF.spatial_shift(x, Shift.S2), torch.cat([down, up, right, left], -1))


def test_second_branch_exchanges_the_axes():
    x = distinct(1, 4, 7, 9)
    swapped = SF.spatial_shift(x.transpose(1, 2), Shift.S2).transpose(1, 2)
    assert torch.equal(SF.spatial_shift(x, Shift.S2_SWAPPED), swapped)


@pytest.mark.parametrize("C", [5, 7, 10, 12, 96])
@pytest.mark.parametrize(("axis", "dim"), [("h", 1), ("w", 2)])
def test_axial_is_pad_chunk_roll_crop(C, axis, dim):
    """AS-MLP's and UNeXt's own formulation: pad by zeros, roll each chunk, crop."""
    x = distinct(2, 6, 8, C)
    padded = F.pad(x, (0, 0, 2, 2, 2, 2))
    rolled = [
        chunk.roll(by, dim)
        for chunk, by in zip(padded.chunk(5, -1), range(-2, 3), strict=False)
    ]  # fmt: skip
    theirs = torch.cat(rolled, -1)[:, 2:-2, 2:-2]
    assert torch.equal(SF.spatial_shift(x, Shift.axial(5, axis)), theirs)


@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize(("axis", "window"), [("h", (0, 1)), ("w", (1, 0))])
def test_cycle_is_a_depthwise_convolution_with_one_tap(kernel, axis, window):
    """CycleFC samples channel c at offset (c + k // 2) % k - k // 2; zeros outside."""
    C = 11
    taps = torch.zeros(C, 1, kernel, dtype=torch.float64)
    for c in range(C):
        taps[c, 0, (c + kernel // 2) % kernel] = 1
    taps = taps.unsqueeze(2 if axis == "w" else 3)
    x = distinct(1, 5, 6, C)
    pad = (0, kernel // 2) if axis == "w" else (kernel // 2, 0)
    theirs = F.conv2d(x.permute(0, 3, 1, 2), taps, padding=pad, groups=C).permute(0, 2, 3, 1)
    assert torch.equal(SF.spatial_shift(x, Shift.cycle(kernel, axis)), theirs)


@pytest.mark.parametrize("C", [16, 19, 30])
def test_temporal_moves_two_folds(C):
    """TSM on (B, T, pixels, C): fold 0 from t + 1, fold 1 from t - 1, zeros outside."""
    x, fold = distinct(2, 5, 4, C), C // 8
    y = x.clone()
    y[..., : 2 * fold] = 0
    y[:, :-1, :, :fold] = x[:, 1:, :, :fold]
    y[:, 1:, :, fold : 2 * fold] = x[:, :-1, :, fold : 2 * fold]
    assert torch.equal(SF.spatial_shift(x, Shift.temporal(8)), y)


@pytest.mark.parametrize("C", [24, 31])
def test_partial_moves_four_twelfths(C):
    """ShiftViT: a twelfth each from the right, the left, below and above."""
    x, g = distinct(1, 4, 6, C), C // 12
    y = x.clone()
    y[..., : 4 * g] = 0
    y[:, :, :-1, :g] = x[:, :, 1:, :g]
    y[:, :, 1:, g : 2 * g] = x[:, :, :-1, g : 2 * g]
    y[:, :-1, :, 2 * g : 3 * g] = x[:, 1:, :, 2 * g : 3 * g]
    y[:, 1:, :, 3 * g : 4 * g] = x[:, :-1, :, 3 * g : 4 * g]
    assert torch.equal(SF.spatial_shift(x, Shift.partial()), y)


@pytest.mark.parametrize("dilation", [1, 2])
def test_grid_reads_a_window_cell_per_channel(dilation):
    """ShiftNet: channel c reads at (c // 3 % 3 - 1, c % 3 - 1); the last C mod 9 stay."""
    C = 21
    x = distinct(1, 6, 5, C)
    padded = F.pad(x, (0, 0, 2, 2, 2, 2))
    y = x.clone()
    for c in range(C // 9 * 9):
        h, w = dilation * (c // 3 % 3 - 1), dilation * (c % 3 - 1)
        y[..., c] = padded[:, 2 + h : 8 + h, 2 + w : 7 + w, c]
    assert torch.equal(SF.spatial_shift(x, Shift.grid(3, dilation)), y)


@pytest.mark.parametrize(
    ("C", "widths"),
    [(6, [1, 2, 1, 2]), (7, [1, 2, 2, 2]), (10, [2, 3, 2, 3]), (11, [2, 3, 3, 3]), (3, [1, 1, 1])],
)
def test_floor_split_cuts_where_the_paper_does(C, widths):
    assert [end - begin for begin, end, *_ in Shift.S2.runs(C)] == widths


def test_the_in_place_code_of_the_ports_computes_something_else():
    """Overlapping slice assignment smears the first row over groups 0 and 2 on the CPU."""
    x = distinct(1, 6, 6, 8)
    smeared = x.clone()
    smeared[:, 1:, :, :2] = smeared[:, :-1, :, :2]
    assert torch.equal(smeared[..., :2], x[:, :1, :, :2].expand(1, 6, 6, 2))
    assert not torch.equal(smeared[..., :2], SF.spatial_shift(x, Shift.S2)[..., :2])


def test_shift_is_a_value():
    shift = Shift([[1, 0], (-1, 0)], "zero", "chunk")
    assert shift == Shift(((1, 0), (-1, 0)), "zero", "chunk")
    assert len({shift, Shift(((1, 0), (-1, 0)), "zero", "chunk")}) == 1
    assert pickle.loads(pickle.dumps(shift)) == shift
    assert Shift.from_spec(shift.spec) == shift
    with pytest.raises(AttributeError):
        shift.border = "keep"


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ((((1, 0),), "clamp"), ValueError, "border must be one of"),
        ((((1, 0),), "keep", "half"), ValueError, "split must be one of"),
        (((),), ValueError, "at least one"),
        (((1, 0),), TypeError, "pairs of ints"),
        ((((1.0, 0),),), TypeError, "pairs of ints"),
        ((((True, 0),),), TypeError, "pairs of ints"),
        ((((1, 0, 0),),), TypeError, "pairs of ints"),
        ((5,), TypeError, "pairs of ints"),
        ((((2**31, 0),),), ValueError, "32 bits"),
        ((((1, 0),), None), ValueError, "border"),
    ],
)
def test_bad_shifts_do_not_come_to_be(arguments, error, told):
    with pytest.raises(error, match=told):
        Shift(*arguments)


@pytest.mark.parametrize("make", [Shift.axial, Shift.cycle])
def test_axis_is_h_or_w(make):
    with pytest.raises(ValueError, match="axis must be 'h' or 'w', got 'x'"):
        make(3, "x")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Shift.axial(0, "h"), "size must be"),
        (lambda: Shift.cycle(4, "h"), "kernel must be"),
        (lambda: Shift.temporal(1), "fold must be"),
        (lambda: Shift.partial(3), "fold must be"),
        (lambda: Shift.grid(2), "kernel must be"),
        (lambda: Shift.grid(3, 0), "dilation must be"),
    ],
)
def test_named_shifts_check_their_sizes(make, told):
    with pytest.raises(ValueError, match=told):
        make()
