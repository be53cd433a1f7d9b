"""Draws from counters: the same for any slicing, each stream by itself, and of the distribution that is meant."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from diffunet.data import Images
from diffunet.training.indexstream import STREAMS, MicroBatches, Stream, collate, draw, index_at, order, torch_seed


def images(n: int = 40, labels: bool = True) -> Images:
    """n pictures of 1 x 4 x 6, each of its own number, in four classes."""
    array = np.arange(n * 24, dtype=np.float64).reshape(n, 1, 4, 6) / (n * 24)
    return Images.from_array(array, (0.0, 1.0), np.arange(n) % 4 if labels else None, "abcd" if labels else None)


def stream(n: int = 40, *, seed: int = 0, flip: bool = False, dropout: float = 0.0, null: int | None = 4) -> Stream:
    return Stream(images(n), seed, flip, dropout, null)


def positions(first: int, last: int, batch: int, accumulation: int, world: int) -> list[list[int]]:
    """What all ranks together see in each step, in the order of the micro-batches' shares."""
    ranks = [list(MicroBatches(first, last, batch, accumulation, rank, world)) for rank in range(world)]
    length = len(MicroBatches(first, last, batch, accumulation, 0, world))
    assert {len(r) for r in ranks} == {(last - first) * accumulation} == {length}
    return [
        [p for micro in range(accumulation) for rank in ranks for p in rank[step * accumulation + micro]]
        for step in range(last - first)
    ]


@pytest.mark.parametrize(("world", "accumulation"), list(product([1, 2, 3], [1, 2, 4])))
def test_any_slicing_sees_the_same_samples(world: int, accumulation: int) -> None:
    assert positions(5, 9, 24, accumulation, world) == [list(range(24 * s, 24 * s + 24)) for s in range(5, 9)]


def test_a_batch_is_the_same_however_it_is_put_together() -> None:
    one = stream(flip=True, dropout=0.5)
    whole = collate([one[p] for p in range(24, 48)])
    again = stream(flip=True, dropout=0.5)
    for rank in (1, 0):
        part = collate([again[p] for p in next(iter(MicroBatches(1, 2, 24, 1, rank, 2)))])
        for key, value in part.items():
            assert value.equal(whole[key][12 * rank : 12 * rank + 12]), key
    assert whole["x0"].shape == whole["eps"].shape == (24, 1, 4, 6)
    assert whole["u"].shape == whole["label"].shape == (24,)


@pytest.mark.parametrize("n", [1, 7, 40])
def test_every_epoch_visits_every_image_once(n: int) -> None:
    for epoch in range(4):
        assert sorted(index_at(3, epoch * n + i, n) for i in range(n)) == list(range(n))
    if n > 1:
        assert len({tuple(order(seed, epoch, n)) for seed in (0, 1) for epoch in range(3)}) == 6


def test_draws_depend_on_seed_stream_and_every_counter() -> None:
    """Also where a counter is far: 10 million steps of a batch of a thousand."""
    places = [(0,), (1,), (10**10,), (10**10 + 1,), (0, 1), (0, 0, 1), (1, 2, 3), (3, 2, 1)]
    drawn = {draw(seed, name, *at).integers(2**63) for seed in (0, 1, 2**40) for name in STREAMS for at in places}
    assert len(drawn) == 3 * len(STREAMS) * len(places)
    assert len(set(STREAMS.values())) == len(STREAMS)
    assert len({torch_seed(0, "network", s, m, r) for s in range(9) for m in range(3) for r in range(3)}) == 81
    assert torch_seed(5, "network", 1, 2, 3) == torch_seed(5, "network", 1, 2, 3) < 2**63


def largest_gap(values: np.ndarray, cdf: np.ndarray) -> float:
    """Kolmogorov and Smirnov: between the empirical distribution of sorted values and the one that is meant."""
    n = len(values)
    return float(max((np.arange(1, n + 1) / n - cdf).max(), (cdf - np.arange(n) / n).max()))


def test_noise_is_standard_normal() -> None:
    """Mean within 5 / sqrt(n), variance within 5 sqrt(2 / n), K-S gap within 1.95 / sqrt(n) (1 in 1000)."""
    noise = np.stack([stream()[p]["eps"] for p in range(2000)]).astype(np.float64)
    n = noise.size
    assert abs(noise.mean()) < 5 / math.sqrt(n)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / n)
    values = np.sort(noise.ravel())
    cdf = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in values])
    assert largest_gap(values, cdf) < 1.95 / math.sqrt(n)
    pixels = noise.reshape(2000, -1)
    assert abs(np.corrcoef(pixels[:-1].ravel(), pixels[1:].ravel())[0, 1]) < 5 / math.sqrt(n), "neighbours agree"
    assert abs(np.corrcoef(pixels.T) - np.eye(24)).max() < 5 / math.sqrt(2000)


def test_times_are_uniform_and_independent_of_the_noise() -> None:
    items = [stream()[p] for p in range(4000)]
    u = np.array([item["u"] for item in items])
    assert u.min() >= 0
    assert u.max() < 1
    assert largest_gap(np.sort(u), np.sort(u)) < 1.95 / math.sqrt(4000)
    assert abs(np.corrcoef(u, [item["eps"].mean() for item in items])[0, 1]) < 5 / math.sqrt(4000)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / math.sqrt(4000)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_classes_are_dropped_one_by_one_at_the_rate(rate: float) -> None:
    """4000 draws: within 4 standard deviations; an item that is kept keeps its own label."""
    items = [stream(dropout=rate)[p] for p in range(4000)]
    dropped = np.array([item["label"] == 4 for item in items])
    assert dropped.mean() == pytest.approx(rate, abs=4 * math.sqrt(max(rate * (1 - rate), 1e-9) / 4000))
    assert all(item["label"] == item["index"] % 4 for item, gone in zip(items, dropped, strict=True) if not gone)
    if 0 < rate < 1:
        runs = dropped.reshape(-1, 20).mean(axis=1)
        assert runs.std() == pytest.approx(math.sqrt(rate * (1 - rate) / 20), rel=0.2), "not one by one"


def test_half_of_the_images_are_mirrored() -> None:
    mirrored = []
    for p in range(2000):
        item, plain = stream(flip=True)[p], stream()[p]
        same = np.array_equal(item["x0"], plain["x0"])
        assert same or np.array_equal(item["x0"], plain["x0"][..., ::-1])
        assert item["x0"].flags.c_contiguous
        assert np.array_equal(item["eps"], plain["eps"]), "one stream moved another"
        mirrored.append(not same)
    assert np.mean(mirrored) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2000))


def test_what_has_no_labels_gives_none() -> None:
    item = Stream(images(labels=False), 0, False, 0.5, None)[3]
    assert set(item) == {"x0", "eps", "u", "index"}
    assert item["eps"].dtype == item["x0"].dtype == np.float32
