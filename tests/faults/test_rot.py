"""Bits that flip, and files that go missing or are swapped: named in a sentence, never trained on."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from colocate.base.errors import TileError, UserError
from colocate.data.index import TRAILER, Index
from colocate.data.inspect import inspect
from colocate.data.rows import SCHEMA
from colocate.slides import manifest as packing
from colocate.slides.listing import find_slides
from colocate.slides.settings import TilingConfig
from colocate.slides.tile import tile
from colocate.training.checkpoint import SUM, load_checkpoint, save_checkpoint
from tests.data.pictures import pack, picture
from tests.faults.killed import contents
from tests.phantom_slide import write_slides

CONFIG = TilingConfig(mpp=2.0, size=64, min_sharpness=0.5)
FLIPS = int(os.environ.get("COLOCATE_FLIPS", "40"))


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("slides"), 2, 640)


@pytest.fixture(scope="module")
def whole(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides in shards of at most five tiles."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "TILES", 5)
        tile(find_slides([slides]), out, CONFIG, workers=1)
    return out


@pytest.fixture
def out(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(packing, "TILES", 5)
    return shutil.copytree(whole, tmp_path / "out")


def flipped(data: bytes, moments: random.Random) -> bytes:
    bit = moments.randrange(len(data) * 8)
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def missing(shards: list[Path]) -> None:
    shards[0].unlink()


def shortened(shards: list[Path]) -> None:
    os.truncate(shards[0], shards[0].stat().st_size - 1024)


def lengthened(shards: list[Path]) -> None:
    with shards[0].open("ab") as file:
        file.write(bytes(512))


def swapped(shards: list[Path]) -> None:
    first, last = shards[0].read_bytes(), shards[-1].read_bytes()
    shards[0].write_bytes(last)
    shards[-1].write_bytes(first)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [missing, shortened, lengthened, swapped])
def test_a_slide_whose_shards_are_not_its_own_is_cut_again(
    fault: Callable[[list[Path]], None], slides: Path, whole: Path, out: Path, tmp_path: Path
) -> None:
    shards = sorted((out / "shards").iterdir())
    fault(shards)
    for look in (
        lambda: Index.build(out, tmp_path / "x.arrow"),
        lambda: inspect(out, out=tmp_path / "sheet.png"),
    ):
        with pytest.raises(UserError, match=rf"{shards[0]} .*delete it and run `colocate tile` again"):
            look()
    assert not (tmp_path / "x.arrow").exists()
    tile(find_slides([slides]), out, CONFIG, workers=1)
    assert contents(out) == contents(whole)


def test_a_swapped_shard_of_the_same_length_is_noticed(out: Path, tmp_path: Path) -> None:
    """Its length says nothing, its first tile does."""
    shard = sorted((out / "shards").iterdir())[0]
    row = parquet.read_table(out / "manifest.parquet").to_pylist()[0]
    data = bytearray(shard.read_bytes())
    data[row["offset"] : row["offset"] + row["bytes"]] = bytes(row["bytes"])
    shard.write_bytes(data)
    with pytest.raises(UserError, match=rf"{shard}:s0/.* is damaged .*: copy {shard} again, or delete it"):
        Index.build(out, tmp_path / "x.arrow")


def test_a_bit_of_a_tile_is_noticed_where_it_is_read(out: Path, tmp_path: Path) -> None:
    index = Index.build(out, tmp_path / "x.arrow")
    moments = random.Random(0)
    for row, number in zip(index.table.to_pylist(), range(len(index)), strict=True):
        shard = out / row["shard"]
        before = shard.read_bytes()
        inside = slice(row["offset"], row["offset"] + row["size"])
        shard.write_bytes(before[: inside.start] + flipped(before[inside], moments) + before[inside.stop :])
        with pytest.raises(TileError, match=r"is damaged \(its checksum is another\)"):
            index.read(number)
        shard.write_bytes(before)
        index.read(number)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest.parquet", "x.arrow"])
def test_a_bit_of_a_table_is_noticed_or_changes_nothing(name: str, out: Path, tmp_path: Path) -> None:
    """In processes that may die of it, as one that maps a damaged file once did."""
    good = Index.build(out, out / "x.arrow")
    whole, moments = (out / name).read_bytes(), random.Random(1)
    for _ in range(FLIPS):
        (out / name).write_bytes(flipped(whole, moments))
        process = os.fork()
        if not process:
            os._exit(_same(good, out / name, tmp_path / "again.arrow"))
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def _same(good: Index, damaged: Path, again: Path) -> int:
    """0: refused in a sentence, or all that training uses is the same."""
    try:
        index = Index.open(damaged) if damaged.suffix == ".arrow" else Index.build(damaged, again)
    except UserError as error:
        return "\n" in str(error) or (damaged.name not in str(error) and "shards" not in str(error))
    except BaseException:
        return 2
    return 0 if index.table.equals(good.table) and damaged.suffix != ".arrow" else 3


@pytest.mark.parametrize("name", [b"slide_mpp", b"crc32", b"bytes", b"shards", b"colocate"])
def test_a_bit_of_a_name_is_noticed_or_changes_nothing(name: bytes, out: Path, tmp_path: Path) -> None:
    """Names of columns and notes stand where no page's checksum reaches; with the highest bit they are no UTF-8."""
    good = Index.build(out, tmp_path / "x.arrow")
    whole = (out / "manifest.parquet").read_bytes()
    assert name in whole
    for bit in (1, 128):
        (out / "manifest.parquet").write_bytes(whole.replace(name, name[:-1] + bytes([name[-1] ^ bit])))
        assert _same(good, out / "manifest.parquet", tmp_path / "again.arrow") == 0


def test_an_index_of_an_older_version_is_read_and_looked_at(out: Path, tmp_path: Path) -> None:
    """Without checksums; runs that began with one go on."""
    index = Index.build(out, tmp_path / "x.arrow")
    facts = index.table.schema.metadata[b"colocate"].replace(b'"version": 2', b'"version": 1')
    table = index.table.drop_columns(["crc32"]).replace_schema_metadata({"colocate": facts})
    with pa.ipc.new_file(str(tmp_path / "old.arrow"), table.schema) as writer:
        writer.write_table(table.combine_chunks())
    old = Index.open(tmp_path / "old.arrow")
    assert old.fingerprint == index.fingerprint and torch.equal(old.read(3), index.read(3))
    assert old.table.schema.equals(SCHEMA) and old.table["crc32"].null_count == len(old)
    (tmp_path / "cut.arrow").write_bytes((tmp_path / "x.arrow").read_bytes()[: -TRAILER.size])
    with pytest.raises(UserError, match="is not an index of this version"):
        Index.open(tmp_path / "cut.arrow")


def test_a_manifest_of_an_older_version_is_read(out: Path, tmp_path: Path) -> None:
    """Without checksums and lengths, which a table that pandas saved has lost, too."""
    index = Index.build(out, tmp_path / "x.arrow")
    table = parquet.read_table(out / "manifest.parquet").drop_columns(["crc32"]).replace_schema_metadata(None)
    parquet.write_table(table, out / "manifest.parquet")
    old = Index.build(out, tmp_path / "old.arrow")
    assert old.fingerprint == index.fingerprint and torch.equal(old.read(3), index.read(3))


@pytest.mark.slow
def test_a_damaged_part_or_file_of_settings_is_named_or_made_again(slides: Path, whole: Path, out: Path) -> None:
    part = out / "parts" / "s0.parquet"
    data = part.read_bytes()
    for damaged in (b"", data[:100], data[:-50], data[:-8] + b"\xff\xff\xff\x7fPAR1"):
        part.write_bytes(damaged)
        tile(find_slides([slides]), out, CONFIG, workers=1)
        assert contents(out) == contents(whole)
    part.write_bytes(data[:20] + bytes(40) + data[60:])  # its rows, not its end
    with pytest.raises(
        UserError, match=r"s0\.parquet is damaged: delete it, and the same command cuts its slide again"
    ):
        tile(find_slides([slides]), out, CONFIG, workers=1)
    (out / "tiling.json").write_text("[1]")
    with pytest.raises(UserError, match=r"tiling\.json is there and not by `colocate tile`"):
        tile(find_slides([slides]), out, CONFIG, workers=1)
    (out / "tiling.json").write_text('{"version": ')
    with pytest.raises(UserError, match=r"tiling\.json is no JSON, or is cut short"):
        tile(find_slides([slides]), out, CONFIG, workers=1)


def _words(values: list[bytes], indices: list[int]) -> pa.Array:
    """Words as a table may claim them, unchecked."""
    offsets = [0]
    for value in values:
        offsets.append(offsets[-1] + len(value))
    stored = pa.array(offsets, pa.int32()).buffers()[1], pa.py_buffer(b"".join(values))
    words = pa.StringArray.from_buffers(len(values), *stored)
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), words, safe=False)


@pytest.mark.parametrize(
    ("column", "word", "message"),
    [
        ("shard", b"shards/s0\0.tar", "holds a zero byte"),
        ("source", b"P\0", "holds a zero byte"),
        ("shard", b"shards/\xed\xa0\x80.tar", "cannot be read as a table .*UTF8"),
        ("source", b"\xff\xfe", "cannot be read as a table .*UTF8"),
        ("shard", b"shards/gone.tar", "cannot be opened .*No such file"),
    ],
)
def test_words_that_are_none(column: str, word: bytes, message: str, out: Path, tmp_path: Path) -> None:
    table = parquet.read_table(out / "manifest.parquet").replace_schema_metadata(None)
    place = table.column_names.index(column)
    table = table.set_column(place, column, _words([word], [0] * len(table)))
    parquet.write_table(table, out / "manifest.parquet")
    with pytest.raises(UserError, match=message):
        Index.build(out, tmp_path / "x.arrow")


@pytest.mark.parametrize("name", ["a\0.png", "\0"])
def test_paths_with_a_zero_byte_in_tables(name: str, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"path": [name, "b.png"]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="holds a zero byte"):
        Index.build(tmp_path / "t.parquet", tmp_path / "x.arrow")


@pytest.mark.parametrize("note", [b"[" * 200_000, b'{"a":' * 200_000, b'{"mpp": ' + b"[" * 200_000])
def test_json_nested_without_end(note: bytes, tmp_path: Path) -> None:
    picture(0, 8, 8).save(tmp_path / "a.png")
    shard = pack(tmp_path, ["a.png"], tmp_path / "t.tar", {"a.json": note})
    with pytest.raises(UserError, match=r"t\.tar:a\.json cannot be read .*: mend it"):
        Index.build(shard, tmp_path / "x.arrow")


@pytest.mark.parametrize("key", ["plain", "TCGA-A1.v2_0_0", "d.1/TCGA-A1_0_1", "a.b.c/d.e.f", "x" * 150, "µ.7"])
@pytest.mark.parametrize("first", ["json", "png"])
def test_a_tile_has_its_json_whatever_dots_its_name_holds(key: str, first: str, tmp_path: Path) -> None:
    """Beside others that differ after a dot alone."""
    picture(0, 8, 8).save(tmp_path / "t.png")
    png = (tmp_path / "t.png").read_bytes()
    members: dict[str, Any] = {}
    for number, name in enumerate((key, f"{key}.1", f"{key}.2")):
        note = f'{{"mpp": 0.{number + 1}, "source": "s{number}"}}'.encode()
        pair: dict[str, bytes] = {f"{name}.png": png, f"{name}.json": note}
        members |= pair if first == "png" else dict(reversed(pair.items()))
    members["other.0.png"] = members["other.1.png"] = png  # which WebDataset groups
    members["other.json"] = b'{"source": "both"}'
    index = Index.build(pack(tmp_path, [], tmp_path / "t.tar", members), tmp_path / "x.arrow")
    assert [index.sources[n] for n in index.source_numbers] == ["s0", "s1", "s2", "both", "both"]
    assert index.mpp[:3].tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_any_bit_of_a_checkpoint_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    """In the archive's directory, too, where one bit makes a folder of a tensor, of which torch reads nothing."""
    state = {"step": 3, "recipe": "{}", "method": {"w": torch.arange(9.0)}, "optimizer": {"lr": 0.1}}
    path = save_checkpoint(tmp_path, 3, state, keep=1)
    right, whole, dice = repr(load_checkpoint(path)), path.read_bytes(), random.Random(0)
    noticed = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << dice.randrange(8)]) + whole[place + 1 :])
        try:
            assert repr(load_checkpoint(path)) == right
        except UserError:
            noticed += 1
    assert noticed >= len(whole) - len(SUM)  # without its mark a checkpoint is one of an earlier version
