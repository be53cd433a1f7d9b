"""MNIST's files: the real Fashion-MNIST, places, padding, damage, download."""

from __future__ import annotations

import gzip
import struct
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from diffunet.compat import torchvision
from diffunet.data import Split, load
from diffunet.data.idx import FILES
from diffunet.errors import DataError
from diffunet.spec import DataConfig


def mnist(path: Path, **options: object) -> Split:
    return load(DataConfig(name="mnist", path=str(path), **options))  # type: ignore[arg-type]


def idx(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A complete MNIST of 5 + 2 images, one file of it gzipped."""
    rng = np.random.default_rng(0)
    for name, count in zip(FILES, (5, 5, 2, 2), strict=True):
        shape = (count, 28, 28) if "images" in name else (count,)
        (tmp_path / name).write_bytes(idx(rng.integers(0, 10, shape, dtype=np.uint8)))
    (tmp_path / f"{FILES[0]}.gz").write_bytes(gzip.compress((tmp_path / FILES[0]).read_bytes()))
    (tmp_path / FILES[0]).unlink()
    return tmp_path


def test_real_fashion_mnist(shared: Path) -> None:
    split = load(DataConfig(name="fashion_mnist", path=str(shared / "fashion_mnist"), held_out=0.5))
    train, test = split.train, split.held_out
    assert test is not None
    assert (len(train), len(test), train.shape) == (60000, 10000, (1, 28, 28))
    assert train.labels is not None
    assert test.labels is not None
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert train.classes is not None
    assert train.classes[train.labels[0]] == "Ankle boot"
    first = np.stack([train[i] for i in range(500)])
    assert (first.min(), first.max()) == (-1.0, 1.0)
    assert train.fingerprint != test.fingerprint


def test_real_fashion_mnist_agrees_with_its_png_sample(shared: Path) -> None:
    train = load(DataConfig(name="fashion_mnist", path=str(shared / "fashion_mnist"))).train
    sample = load(DataConfig(name="folder", path=str(shared / "fashion_mnist_png_sample"), held_out=0.0)).train
    for i in range(0, 200, 7):
        np.testing.assert_array_equal(sample[i], train[int(Path(sample.name_of(i)).stem)])


def test_files_are_found_plain_gzipped_and_in_torchvisions_root(small: Path, tmp_path: Path) -> None:
    split = mnist(small)
    assert split.held_out is not None
    assert (len(split.train), len(split.held_out)) == (5, 2)
    assert split.train.classes == tuple("0123456789")
    raw = small / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in [*small.glob("*ubyte"), *small.glob("*.gz")]:
        file.rename(raw / file.name)
    assert mnist(small).train.fingerprint == split.train.fingerprint


def test_a_larger_size_pads_with_black_and_keeps_every_pixel(small: Path) -> None:
    plain, padded = mnist(small).train, mnist(small, size=(33, 32)).train
    assert padded.shape == (1, 33, 32)
    np.testing.assert_array_equal(padded[1][:, 2:30, 2:30], plain[1])
    frame = padded[1].copy()
    frame[:, 2:30, 2:30] = -1
    assert (frame == -1).all()


def test_a_smaller_size_is_refused(small: Path) -> None:
    with pytest.raises(DataError, match=r"data\.size = 16 is smaller than the 28 x 28"):
        mnist(small, size=16)


def test_a_missing_file_is_named(small: Path) -> None:
    (small / FILES[3]).unlink()
    with pytest.raises(DataError, match=rf"{FILES[3]} not found .*data\.download = true"):
        mnist(small)


WRONG = {
    "truncated": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "empty": lambda data: b"",
    "another magic": lambda data: b"\0\0\x0d" + data[3:],
    "more axes": lambda data: b"\0\0\x08\x04" + data[4:],
    "huge claim": lambda data: data[:4] + b"\xff" * 12 + data[16:],
}


@pytest.mark.parametrize("damage", WRONG)
@pytest.mark.parametrize("packed", [True, False])
def test_damaged_files_are_named(small: Path, damage: str, packed: bool) -> None:
    data = WRONG[damage](gzip.decompress((small / f"{FILES[0]}.gz").read_bytes()))
    name = f"{FILES[0]}.gz" if packed else FILES[0]
    (small / f"{FILES[0]}.gz").unlink()
    (small / name).write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(DataError, match=name):
        mnist(small)


def test_a_truncated_gzip_is_named(small: Path) -> None:
    file = small / f"{FILES[0]}.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{FILES[0]}\.gz cannot be read"):
        mnist(small)


@pytest.mark.parametrize("labels", [np.zeros(4, np.uint8), np.full(5, 10, np.uint8)])
def test_labels_that_do_not_fit_are_refused(small: Path, labels: np.ndarray) -> None:
    (small / FILES[1]).write_bytes(idx(labels))
    with pytest.raises(DataError, match=FILES[1]):
        mnist(small)


def test_a_download_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(DataError, match=r"torchvision could not download MNIST to"):
        mnist(tmp_path, download=True)


def test_a_download_lands_where_it_is_read(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server on this machine stands in for the mirrors, so that torchvision's own code does the rest."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(shared / "fashion_mnist"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        mirror = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(torchvision("datasets").FashionMNIST, "mirrors", [mirror])
        split = load(DataConfig(name="fashion_mnist", path=str(tmp_path), download=True))
        server.shutdown()
    there = load(DataConfig(name="fashion_mnist", path=str(shared / "fashion_mnist")))
    assert split.train.fingerprint == there.train.fingerprint
    assert capfd.readouterr().out == ""  # stdout belongs to results


def test_what_is_there_is_not_downloaded(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert len(mnist(small, download=True).train) == 5
    assert capfd.readouterr().out == ""
