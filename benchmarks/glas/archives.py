"""Packs: a folder of tar archives, each small enough to be moved on its own, and a list of them with their hashes.

PACKS/packs.json             what is in them
PACKS/tiles/tiles-0.tar ...  tiles for pretraining, in WebDataset's layout, which colocate reads as they lie
PACKS/labelled/glas-0.tar    the prepared GlaS, to be unpacked to PACKS/glas
"""

from __future__ import annotations

import fcntl
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, final

from colocate.data import Labelled
from colocate.errors import UserError
from colocate.files import write_atomically
from colocate.prepare.writer import folder_or_nothing

VERSION = 1
LIST = "packs.json"
Member = tuple[str, bytes]
"""A file's name and content."""


def write_archives(folder: Path, stem: str, samples: Iterable[Sequence[Member]], most_bytes: int) -> list[str]:
    """Write files as folder/stem-0.tar, ..., none larger than `most_bytes`; returns the archives' names.

    The members of a sample lie in one archive. The same files give the same bytes, whoever packs them, and when.

    Raises:
        UserError: one sample alone is too large.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    tar: tarfile.TarFile | None = None
    for sample in samples:
        size = sum(512 + -(-len(content) // 512) * 512 for _, content in sample)
        if size + tarfile.RECORDSIZE > most_bytes:
            raise UserError(f"{sample[0][0]} alone is larger than an archive may be: give a larger --most-mib")
        if tar is None or tar.offset + size + tarfile.RECORDSIZE > most_bytes:
            if tar is not None:
                tar.close()
            names.append(f"{stem}-{len(names)}.tar")
            tar = tarfile.open(folder / names[-1], "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        for name, content in sample:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    if tar is not None:
        tar.close()
    return names


def write_list(folder: Path, names: Sequence[str], facts: dict[str, Any]) -> None:
    """Write packs.json: the facts, and size and hash of each of these archives."""
    archives = []
    for name in names:
        content = (folder / name).read_bytes()
        archives.append({"file": name, "bytes": len(content), "sha256": sha256(content).hexdigest()})
    (folder / LIST).write_text(json.dumps({"version": VERSION, **facts, "archives": archives}, indent=1) + "\n")


@final
@dataclass(frozen=True)
class Packs:
    """Packs that have all arrived whole; made by `Packs.open`."""

    folder: Path
    facts: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Packs:
        """Read the list of a folder of packs, and see that every archive is there and as it was packed.

        Raises:
            UserError: no such folder, or one is missing or damaged.
        """
        path = folder / LIST
        try:
            facts = json.loads(path.read_text())
            if facts["version"] != VERSION:
                raise UserError(f"{path} is of another version: pack again")
            wanted = {archive["file"]: archive["sha256"] for archive in facts["archives"]}
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): give a folder that `pack` wrote") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!r}): copy it again, or pack again") from error
        if missing := [name for name in wanted if not (folder / name).is_file()]:
            raise UserError(f"{folder} lacks {', '.join(missing)}: copy what has not arrived yet")
        if damaged := [name for name, digest in wanted.items() if _sha256(folder / name) != digest]:
            raise UserError(f"{folder}: {', '.join(damaged)} arrived damaged or cut short: copy again")
        return cls(folder.absolute(), facts)

    @property
    def fingerprint(self) -> str:
        """Hash of all archives' hashes."""
        digests = [archive["sha256"] for archive in self.facts["archives"]]
        return blake2b(" ".join(digests).encode(), digest_size=16).hexdigest()

    def copy_list(self, out: Path) -> None:
        """Copy packs.json to where results are, which may travel without the packs."""
        content = (self.folder / LIST).read_bytes()
        write_atomically(out / LIST, lambda file: file.write(content))

    @property
    def tiles(self) -> Path:
        """The folder of shards to pretrain on."""
        return self.folder / "tiles"

    def labelled(self) -> Labelled:
        """The prepared GlaS, unpacked at the first call. Raises UserError where there is no room, or it was changed."""
        out = self.folder / "glas"
        with claim(self.folder / ".unpacking", wait=True):
            if not out.exists():
                with folder_or_nothing(out) as folder:
                    for path in sorted((self.folder / "labelled").glob("*.tar")):
                        with tarfile.open(path) as tar:
                            tar.extractall(folder, filter="data")
        data = Labelled.open(out)
        if data.fingerprint != self.facts["labelled"]["fingerprint"]:
            raise UserError(f"{out} is not what was packed: remove that folder, it will be unpacked again")
        return data


def _sha256(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


@contextmanager
def claim(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process now has the claim that a file stands for; it ends with the block, or with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough: loader processes have inherited the file
