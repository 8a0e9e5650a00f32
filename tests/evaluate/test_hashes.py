"""Hashes: equal to the library's, found by any symmetry, kept and taken up again."""

from __future__ import annotations

from pathlib import Path

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from colocate.base.errors import UserError
from colocate.data.decode import decode
from colocate.evaluation import hashes as module
from colocate.evaluation.hashes import Hashes, alike, hashes, near_pairs
from tests.tiny import write_tiles


class Pictures:
    """Images on disk, and which of them have been read."""

    def __init__(self, folder: Path, count: int = 8) -> None:
        self.paths = sorted(write_tiles(folder, count).iterdir())
        self.seen: list[int] = []

    def read(self, number: int) -> Tensor:
        self.seen.append(number)
        return decode(self.paths[number].read_bytes(), str(self.paths[number]))

    def hashes(self, cache: Path, key: str = "k", symmetries: bool = False) -> Hashes:
        self.seen = []
        return hashes(self.read, len(self.paths), cache, key, symmetries)


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    return Pictures(tmp_path / "pictures")


def same(one: Hashes, other: Hashes) -> bool:
    return one.exact == other.exact and np.array_equal(one.near, other.near) and one.unreadable == other.unreadable


def test_the_hash_is_the_librarys_own_under_each_symmetry(pictures: Pictures, tmp_path: Path) -> None:
    found = pictures.hashes(tmp_path / "cache", symmetries=True)
    assert found.near.shape == (8, 8)
    for path, row in zip(pictures.paths, found.near, strict=True):
        assert f"{int(row[0]):016x}" == str(imagehash.phash(Image.open(path)))
        assert len(set(row.tolist())) == 8
    assert len(set(found.exact)) == 8


def test_any_symmetry_of_one_is_found_among_the_others(pictures: Pictures, tmp_path: Path) -> None:
    turned = tmp_path / "turned"
    turned.mkdir()
    for number, turn in enumerate(Image.Transpose):
        Image.open(pictures.paths[number]).transpose(turn).save(turned / f"{number}.png")
    tiles = Pictures(tmp_path / "other", 0)
    tiles.paths = sorted(turned.iterdir())
    every, plain = pictures.hashes(tmp_path / "a", symmetries=True), tiles.hashes(tmp_path / "b")
    assert near_pairs(every.near, plain.near[:, 0]) == [(number, number) for number in range(7)]


def test_near_pairs_are_those_that_counting_bits_finds() -> None:
    rng = np.random.default_rng(0)
    few = rng.integers(0, 2**64, (5, 3), np.uint64, endpoint=False)
    many = np.concatenate([few.ravel() ^ np.uint64(0b10110 << 50), rng.integers(0, 2**64, 9000, np.uint64)])
    for most in (2, 3, 18):
        slow = {
            (row, column)
            for row, mine in enumerate(few.tolist())
            for column, its in enumerate(many.tolist())
            if min((one ^ its).bit_count() for one in mine) <= most
        }
        assert set(near_pairs(few, many, most)) == slow
        assert bool(slow) == (most > 2)


def test_alike_is_one_for_turned_copies_and_low_for_others(pictures: Pictures) -> None:
    images = [pictures.read(number) for number in range(8)]
    for number, image in enumerate(images):
        assert alike(image, image.flip(2).mT.contiguous()) > 0.999
        assert alike(image, images[number - 1]) < 0.6
        assert alike(image, (image // 2 + 20)) > 0.99
    assert alike(images[0], torch.full((3, 9, 9), 200, dtype=torch.uint8)) == 0


def test_hashes_are_computed_once(pictures: Pictures, tmp_path: Path) -> None:
    cache = tmp_path / "hashes.parquet"
    first = pictures.hashes(cache)
    assert pictures.seen == list(range(8))
    assert same(pictures.hashes(cache), first) and pictures.seen == []
    assert same(pictures.hashes(cache, "other"), first) and pictures.seen == list(range(8))
    cache.write_bytes(cache.read_bytes()[:-9])
    assert same(pictures.hashes(cache), first) and pictures.seen == list(range(8))
    assert pictures.hashes(cache, symmetries=True).near.shape == (8, 8)
    pq.write_table(pa.table({"near": [1]}), cache)  # another program's
    assert same(pictures.hashes(cache), first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hashes.parquet", "pictures"]


def test_what_could_not_be_read_is_tried_again(pictures: Pictures, tmp_path: Path) -> None:
    cache, path = tmp_path / "hashes.parquet", pictures.paths[5]
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    first = pictures.hashes(cache)
    assert list(first.unreadable) == [5] and "05.png" in first.unreadable[5] and first.exact[5] == b""
    path.write_bytes(whole)
    assert pictures.hashes(cache).unreadable == {} and pictures.seen == [5]
    assert pictures.hashes(cache).exact[5] and pictures.seen == []


def test_many_are_hashed_in_other_processes_to_the_same_end(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures.paths[2].write_text("words")
    first = pictures.hashes(tmp_path / "a")
    monkeypatch.setattr(module, "FEW", 3)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    state = torch.get_rng_state()
    assert same(pictures.hashes(tmp_path / "b"), first) and pictures.seen == []
    assert torch.equal(state, torch.get_rng_state())


def test_a_folder_that_may_only_be_read_is_no_obstacle(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise UserError("read-only")

    monkeypatch.setattr(module, "write_atomically", refused)
    assert len(pictures.hashes(tmp_path / "cache").exact) == 8
