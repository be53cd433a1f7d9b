"""Dice, IoU and pixel error are those of sets, and absent classes are counted honestly."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from diffunet.metrics.segmentation import Estimate, Scores, confusion, dice, iou, pixel_error

RANDOM = np.random.default_rng(0)


def test_scores_are_those_of_sets() -> None:
    """|A and B| and |A or B| counted pixel by pixel."""
    label, found = RANDOM.integers(0, 4, (2, 30, 20))
    table = confusion(found, label, 4)
    for k in range(4):
        a, b = label == k, found == k
        assert table[k].sum() == a.sum()
        assert dice(table)[k] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert iou(table)[k] == pytest.approx((a & b).sum() / (a | b).sum())
    assert pixel_error(table) == pytest.approx((label != found).mean())


def test_dice_and_iou_say_the_same() -> None:
    table = confusion(*RANDOM.integers(0, 3, (2, 50)), 3)
    assert dice(table) == pytest.approx(2 * iou(table) / (1 + iou(table)))


def test_a_perfect_mask_and_an_opposite_one() -> None:
    label = np.array([[0, 1], [1, 1]])
    assert dice(confusion(label, label, 2)).tolist() == [1, 1]
    opposite = confusion(1 - label, label, 2)
    assert dice(opposite).tolist() == iou(opposite).tolist() == [0, 0]
    assert pixel_error(opposite) == 1


def test_an_estimate_has_the_standard_error_of_its_mean() -> None:
    values = [0.2, 0.5, 0.9]
    estimate = Estimate.of([*values, math.nan])
    assert estimate.images == 3
    assert estimate.mean == pytest.approx(np.mean(values))
    assert estimate.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(3))
    assert str(Estimate.of([0.5])) == "0.5000"
    assert (Estimate.of([math.nan]).mean, str(Estimate.of([]))) == (None, "-")


def test_absent_classes_are_left_out_and_false_ones_are_not() -> None:
    """Class 2: in neither in the first image, found where there is none in the second, missed in the third."""
    scores = Scores(("a", "b", "c"))
    plain = np.array([[0, 1], [1, 0]])
    extra = np.array([[0, 1], [2, 0]])
    scores.add("first", plain, plain)
    scores.add("second", extra, plain)
    scores.add("third", plain, extra)
    third = scores.of_classes()["c"]
    assert third["dice"] == Estimate(0.0, 0.0, 2)
    assert third["iou"].images == 2
    assert scores.of_classes()["a"]["dice"] == Estimate(1.0, 0.0, 3)
    assert scores.pixel_error().mean == pytest.approx(0.5 / 3)


def test_the_table_and_the_json_say_the_same() -> None:
    scores = Scores(("membrane", "cell"))
    for i in range(4):
        scores.add(f"{i}.png", *RANDOM.integers(0, 2, (2, 9, 9)))
    result = json.loads(json.dumps(scores.to_json()))
    lines = scores.table().splitlines()
    for name in scores.classes:
        (row,) = [line for line in lines if line.startswith(name)]
        for metric in ("dice", "iou"):
            entry = result["classes"][name][metric]
            assert f"{entry['mean']:.4f} +- {entry['standard_error']:.4f}" in row
        assert row.endswith("4 of 4")
    assert f"{result['pixel_error']['mean']:.4f}" in scores.table()
    assert [image["name"] for image in result["images"]] == [f"{i}.png" for i in range(4)]
    assert max(map(len, lines)) <= 80
