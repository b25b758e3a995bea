"""The tolerance policy passes what errs as PyTorch does, and tells what errs more."""

import pytest
import torch

from shiftmlp import testing

SHAPE = (2, 3, 24)


def draws(count, spoil=lambda error: error, seed=0):
    """Both err by as much at random; ``spoil`` changes our error."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        exact = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
        ours, torchs = (1e-3 * torch.randn(SHAPE, generator=generator) for _ in range(2))
        made.append(((exact + spoil(ours)).float(), (exact + torchs).float(), exact))
    return made


def scaled(where, by):
    def spoil(error):
        error[where] *= by
        return error

    return spoil


def test_equal_errors_pass_in_every_number_of_draws():
    testing.assert_as_good_as_torch(*draws(1)[0])
    for seed in range(50):
        testing.assert_as_good_on_average(draws(8, seed=seed))


@pytest.mark.parametrize(
    "spoil",
    [
        scaled(..., 4),
        scaled((..., -1), 8),
        scaled((slice(None), 0), 8),
        lambda error: error + 2e-3,
        lambda error: error + float("nan"),
    ],
    ids=["all", "last-channel", "first-token", "bias", "nan"],
)
def test_larger_errors_are_told(spoil):
    for seed in range(50):
        with pytest.raises(AssertionError, match=r"error (inf|[\d.e-]+), allowed"):
            testing.assert_as_good_on_average(draws(8, spoil, seed))


def test_one_bad_draw_is_not_excused_by_others():
    bad, good = draws(1, scaled((0, 0, 0), 1000)), draws(7, seed=1)
    with pytest.raises(AssertionError, match="whole"):
        testing.assert_as_good_on_average(bad + good)


def test_the_result_is_named():
    (ours, torchs, exact), *_ = draws(1, scaled(..., 100))
    for index, given in enumerate(([ours, torchs], [torchs, ours])):
        with pytest.raises(AssertionError, match=f"result {index}: whole"):
            testing.assert_as_good_as_torch(given, [torchs] * 2, [exact] * 2)
    with pytest.raises(AssertionError, match="wrong number of results"):
        testing.assert_as_good_as_torch([ours], [torchs] * 2, [exact] * 2)
