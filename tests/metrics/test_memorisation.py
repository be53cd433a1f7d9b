import pytest
import torch

from diffunet.errors import DataError
from diffunet.metrics import nearest_distances


@pytest.mark.parametrize("chunk", [1, 7, 100, 2000])
def test_the_nearest_is_that_of_all_pairs(digits, chunk):
    samples, train = digits.held_out[:30], digits.train[:100]
    pairs = (samples[:, None] - train[None]).double().square().mean((2, 3, 4)).sqrt()
    distances, indices = nearest_distances(samples, train, chunk)
    torch.testing.assert_close(distances.double(), pairs.min(1).values)
    assert torch.equal(indices, pairs.argmin(1))


def test_copies_are_at_zero_and_name_their_original(digits):
    distances, indices = nearest_distances(digits.train[200:300], digits.train)
    assert (distances == 0).all()
    assert torch.equal(digits.train[indices], digits.train[200:300])


def test_one_grey_level_in_one_pixel_is_seen():
    # in float32 the terms of |x|^2 - 2 x.y + |y|^2 would hide it
    train = torch.rand(500, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    train[1::2] = train[::2]
    train[1::2, 0, 5, 5] += 1 / 127.5
    distances, indices = nearest_distances(train, train)
    assert (distances == 0).all()
    assert torch.equal(indices, torch.arange(500))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (3, 33, 17), (2, 50), (1, 4, 5, 6)])
def test_black_and_white_are_two_apart_at_any_size(shape):
    distances, _ = nearest_distances(torch.ones(3, *shape), -torch.ones(2, *shape))
    assert distances.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("train", [torch.zeros(0, 1, 8, 8), torch.zeros(4, 1, 8, 9)])
def test_images_that_cannot_be_compared_are_an_error(train):
    with pytest.raises(DataError, match="images of one shape"):
        nearest_distances(torch.zeros(2, 1, 8, 8), train)
