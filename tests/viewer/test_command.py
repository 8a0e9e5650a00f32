"""The command: its address, its end, and its sentences."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from colocate.cli.main import main
from colocate.viewer import server
from tests.phantom_slide import painted, write_pyramid


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_pyramid(tmp_path / "slide.tif", painted(300, 200), 0.5, 1)


@contextmanager
def viewing(*words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and the address that it printed."""
    command = [sys.executable, "-u", "-m", "colocate", "view", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = ""
            while "http" not in said:
                said = process.stdout.readline()
                assert said, process.stderr.read()  # type: ignore[union-attr]
            yield process, re.findall(r"http://\S+", said)[0]
        finally:
            process.kill()


def test_it_serves_until_it_is_told_to_end(slide: Path) -> None:
    with viewing(slide, "--port", 0) as (process, address):
        port = int(re.findall(r"localhost:(\d+)/", address)[0])
        connection = http.client.HTTPConnection("localhost", port)
        path = address.partition(str(port))[2]
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200 and b"colocate" in answer.read()
        connection.request("GET", "/")
        assert connection.getresponse().status == 403
        assert len(path.partition("token=")[2]) >= 32
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read() == "Ctrl-C ends it\nended: nothing is served any more\n"
        assert process.stderr.read() == ""


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as leaving:
        main(["view", *map(str, words)])
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("colocate: ") and said.count("\n") == 1
    return said


def test_a_port_that_is_in_use_is_a_sentence(slide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(capsys, slide, "--port", port, "--host", "127.0.0.1")
        assert f"port {port} is in use: give another one" in said


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--host", "203.0.113.9", "give a name or an address of this machine"),
        ("--host", "no.such.name.invalid", "give a name or an address of this machine"),
        ("--port", "70000", "is no port"),
        ("--port", "-1", "is no port"),
    ],
)
def test_an_address_that_cannot_be_is_a_sentence(
    slide: Path, option: str, value: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, slide, option, value)


@pytest.mark.parametrize("package", ["uvicorn", "starlette"])
def test_a_missing_package_is_a_sentence(
    slide: Path, package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package or name == "colocate.viewer.server"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not there
    assert refused(capsys, slide) == f"colocate: {package} is not installed: pip install 'colocate[viewer,features]'\n"


def test_only_this_machine_can_ask_unless_told_otherwise() -> None:
    with closing(server.listen("localhost", 0)) as heard:
        assert heard.getsockname()[0] in ("127.0.0.1", "::1")


def test_the_browser_opens_only_if_asked(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(server.webbrowser, "open", opened.append)
    monkeypatch.setattr(server.uvicorn.Server, "run", lambda self, sockets: sockets[0].close())
    main(["view", str(slide), "--port", "0"])
    assert opened == []
    main(["view", str(slide), "--port", "0", "--open"])
    assert len(opened) == 1 and "token=" in opened[0]
    heard = server.listen("localhost", 0)
    monkeypatch.setattr(server, "listen", lambda *_: heard)
    main(["view", str(slide), "--host", "2001:db8::1", "--open"])
    assert opened[1].startswith("http://[2001:db8::1]:")
