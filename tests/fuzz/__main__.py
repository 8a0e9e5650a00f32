"""Mutate the files of every reader: `python -m tests.fuzz [READER ...] [--count 2000] [--first 0]`.

Each mutation must end in a result or in one sentence (UserError, TileError), within 10 seconds and 1 GiB. A child does
the reading, so that a crash or a hang is seen and the rest goes on. Mutation N of a reader is the same every time.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from random import Random

SECONDS = 10.0
MOST_BYTES = 1 << 30  # more than the process has when it begins to read
ODD = (
    b"0",
    b"-1",
    b"1e999",
    b"NaN",
    b"4294967296",
    b"99999999999999999999",
    b'""',
    b"null",
    b"[]",
    b"{}",
    b"../x",
    b"\0",
)
ODD += (b"\xff\xfe", b"\xed\xa0\x80", b"\x1b[2J", b"=1+1", b"[" * 100_000, b'{"a":' * 100_000)
TOKEN = re.compile(rb'-?[0-9.]+|"[^"]*"|[A-Za-z_]+')


def mutate(data: bytes, random: Random) -> bytes:
    """One to four changes: bits, bytes, pieces cut out, doubled or moved, numbers and words replaced by odd ones."""
    for _ in range(random.choice((1, 1, 2, 4))):
        if not data:
            break
        place = random.randrange(min(len(data), random.choice((64, 1 << 30))))  # headers matter most
        end = min(len(data), place + random.choice((1, 2, 4, 16, 200)))
        match random.randrange(7):
            case 0:
                data = data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]
            case 1:
                data = data[:place] + random.randbytes(end - place) + data[end:]
            case 2:
                data = data[:place] + random.choice((b"\0", b"\xff", b"\x7f")) * (end - place) + data[end:]
            case 3:
                data = data[:place] if random.random() < 0.3 else data[:place] + data[end:]
            case 4:
                data = data[:end] + data[place:end] * random.choice((1, 50)) + data[end:]
            case _:
                tokens = list(TOKEN.finditer(data[:100_000]))
                if tokens:
                    token = random.choice(tokens)
                    data = data[: token.start()] + random.choice(ODD) + data[token.end() :]
    return data


def read(names: Sequence[str], first: int, count: int) -> None:
    """Read mutations 0 to `count` of each reader, of the first one from `first` on, in a process of its own.

    Prints a line before each, one where something else than a result or a sentence comes out, and one after a reader.
    """
    from colocate.base.errors import TileError, UserError
    from tests.fuzz.readers import READERS

    for name in names:
        reader = READERS[name]
        with tempfile.TemporaryDirectory() as scratch:
            valid = Path(scratch) / "valid"
            valid.mkdir()
            reader.make(valid)
            files = sorted(path.relative_to(valid) for path in valid.glob(reader.mutated) if path.is_file())
            assert files, f"{name} mutates nothing"
            with contextlib.redirect_stdout(sys.stderr):
                right = reader.read(valid)  # from here on memory is counted
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, resource.RLIM_INFINITY))
            for number in range(first, count):
                print("at", name, number, flush=True)
                random = Random(f"{name} {number}")
                place = Path(scratch) / str(number)  # a path of its own, because open slides are kept
                shutil.copytree(valid, place)
                file = place / random.choice(files)
                file.write_bytes(mutate(file.read_bytes(), random))
                try:
                    with contextlib.redirect_stdout(sys.stderr):
                        answer = reader.read(place)
                    if reader.exact and answer != right:
                        print("bad", name, number, "another value, and not a word", flush=True)
                except (UserError, TileError) as error:
                    if "\n" in str(error) or not str(error).isprintable() or len(str(error)) > 2000:
                        print("bad", name, number, f"no sentence: {str(error)[:200]!r}", flush=True)
                except BaseException:
                    lines = traceback.format_exc().splitlines()
                    ours = [line.strip() for line in lines if "/colocate/" in line][-1:]
                    print("bad", name, number, *ours, lines[-1][:200], flush=True)
                shutil.rmtree(place, ignore_errors=True)
            print("end", name, count, flush=True)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        first = 0  # of the next reader


def watch(names: Sequence[str], count: int, first: int = 0) -> list[str]:
    """Have mutations read by a child, and by another one where it ends; returns a line for each bad answer."""
    failures: list[str] = []
    left = list(names)
    while left:
        command = [sys.executable, "-m", "tests.fuzz", *left, "--count", str(count), "--first", str(first), "--read"]
        with tempfile.TemporaryFile("w+") as errors:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1)
            at, hung = _follow(child, failures)
            errors.seek(0)
            if at is None and child.returncode:
                raise RuntimeError(errors.read()[-2000:])
        if at is None or not child.returncode:
            break
        name, number = at
        failures.append(f"{name} {number} {'takes too long' if hung else f'ended the process: {child.returncode}'}")
        left, first = left[left.index(name) :], number + 1
    return failures


def _follow(child: subprocess.Popen[str], failures: list[str]) -> tuple[tuple[str, int] | None, bool]:
    """Listen to a child until it ends or hangs; returns the mutation it was at, and whether it hung."""
    at, since = None, time.monotonic()
    assert child.stdout is not None
    while True:
        ready, _, _ = select.select([child.stdout], [], [], 1)
        line = child.stdout.readline() if ready else None
        if line == "":
            child.wait()
            return at, False
        if line:
            kind, name, number, *rest = line.split(maxsplit=3)
            at, since = None if kind == "end" else (name, int(number)), time.monotonic()
            if kind == "bad":
                failures.append(f"{name} {number} {' '.join(rest).strip()}")
        elif at is not None and time.monotonic() - since > SECONDS:
            child.kill()
            child.wait()
            return at, True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="READER")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--read", action="store_true", help="in this process, without a watcher")
    asked = parser.parse_args()
    if asked.read:
        read(asked.names, asked.first, asked.count)
    else:
        from tests.fuzz.readers import READERS

        found = watch(asked.names or list(READERS), asked.count, asked.first)
        print("\n".join(found) or "no mutation was answered by anything but a result or a sentence")
        sys.exit(bool(found))
