"""Free memory is what the machine and every control group around the process leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate.data import memory

MEMINFO = "MemTotal: 100 kB\nMemFree: 2 kB\nMemAvailable: 50 kB\nHugePages_Total: 0\n"


def free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str]) -> int:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    read = {"/proc/meminfo": MEMINFO, "/proc/self/cgroup": groups}
    plain = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: read.get(str(path)) or plain(path))
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    return memory.free_memory()


def test_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free(tmp_path, monkeypatch, "0::/\n", {}) == 50 * 1024


def test_the_narrowest_group_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"job/memory.max": "5000\n", "job/memory.current": "2500\n", "job/step/memory.max": "max\n"}
    files |= {"job/memory.stat": "anon 7\ninactive_file 500\n", "job/step/memory.current": "1\n"}
    files |= {"job/step/memory.stat": "anon 7\n"}
    assert free(tmp_path, monkeypatch, "0::/job/step\n", files) == 3000


def test_the_older_kind_seen_from_inside_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory/memory.limit_in_bytes": "900\n", "memory/memory.usage_in_bytes": "1000\n"}
    files |= {"memory/memory.stat": "inactive_file 300\n"}
    groups = "12:cpuset:/docker/4f\n3:memory:/docker/4f\n0::/\n"
    assert free(tmp_path, monkeypatch, groups, files) == 200
