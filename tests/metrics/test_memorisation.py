import pytest
import torch

from diffunet.errors import DataError
from diffunet.metrics import nearest_distances
from diffunet.metrics.memorisation import Neighbours, _chance, nearness, neighbours


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


@pytest.mark.parametrize("chunk", [1, 7, 2000])
def test_the_two_nearest_are_those_of_all_pairs(digits, chunk):
    samples, train = digits.held_out[:30], digits.train[:100]
    pairs = (samples[:, None] - train[None]).double().square().mean((2, 3, 4)).sqrt()
    found = neighbours(samples, train, chunk)
    first, second = pairs.sort(1).values[:, :2].unbind(1)
    torch.testing.assert_close(found.distance.double(), first)
    torch.testing.assert_close(found.second.double(), second)


def test_of_one_training_image_there_is_no_second_nearest(digits):
    found = neighbours(digits.held_out[:3], digits.train[:1])
    assert found.second.isinf().all()
    assert nearness(found, None).to_json() == {
        **dict.fromkeys(("floor", "ratio", "nearer", "flag")),
        "median": pytest.approx(found.distance.median().item(), abs=1e-6),
        "alone": 1.0,
    }


def test_a_model_that_copies_nothing_is_suspected_once_in_a_thousand_times(digits):
    """Half of the held-out images as the samples of a perfect model, the other half as the floor, 1000 times."""
    found = neighbours(digits.held_out, digits.train)
    generator, flags = torch.Generator().manual_seed(0), 0
    for _ in range(1000):
        order = torch.randperm(len(digits.held_out), generator=generator)
        samples, floor = (Neighbours(*(part[rows] for part in vars(found).values())) for rows in order.split(350))
        flags += bool(nearness(samples, floor).flag)
    assert flags <= 6  # one is expected


@pytest.mark.parametrize("copied", [0.2, 0.5, 1.0])
def test_copies_with_a_little_noise_are_suspected(digits, copied):
    train, count = digits.train, int(copied * 64)
    samples = digits.held_out[:64].clone()
    samples[:count] = train[:count] + 0.02 * torch.randn(train[:count].shape)
    found = nearness(neighbours(samples, train), neighbours(digits.held_out[64:], train))
    assert found.flag
    assert found.nearer == pytest.approx(copied, abs=0.05)
    assert found.alone == pytest.approx(copied, abs=0.05)


def test_a_blurred_sample_lies_near_to_many_images_and_alone_with_none(digits):
    blurred = digits.train.mean(0, keepdim=True)
    assert nearness(neighbours(blurred, digits.train), None).alone == 0


@pytest.mark.parametrize(("count", "k", "n", "m"), [(1, 1, 4, 20), (3, 1, 4, 20), (2, 2, 5, 9), (5, 3, 12, 30)])
def test_the_chance_of_a_count_is_that_of_shuffled_values(count, k, n, m):
    generator = torch.Generator().manual_seed(0)
    ranks = torch.rand(20_000, n + m, generator=generator)
    before = (ranks[:, :n] < ranks[:, n:].sort(1).values[:, k - 1 : k]).sum(1)
    assert _chance(count, k, n, m) == pytest.approx((before >= count).double().mean().item(), abs=0.012)
