"""Which slides there are, and what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate.base.errors import UserError
from colocate.slides.listing import find_slides


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def named(*places: Path) -> list[str]:
    return [slide.name for slide in find_slides(places)]


def test_folders_are_searched_and_names_are_short(tmp_path: Path) -> None:
    touch(tmp_path, "b.svs", "sub/a.ndpi", "sub/c.TIFF", "notes.txt", ".hidden.svs", ".trash/d.svs", "photo.png")
    assert named(tmp_path) == ["b", "sub/a", "sub/c"]
    assert named(tmp_path / "photo.png", tmp_path / "b.svs") == ["b", "photo"]
    assert named(tmp_path / "sub" / "a.ndpi") == ["a"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "slides/a.svs", "slides/sub/b.svs", "elsewhere/c.svs")
    (tmp_path / "slides" / "self").symlink_to(".")
    (tmp_path / "slides" / "sub" / "up").symlink_to("../..")
    (tmp_path / "slides" / "other").symlink_to(tmp_path / "elsewhere")
    assert named(tmp_path / "slides") == ["a", "other/c", "sub/b"]


def test_links_to_one_file_are_told_unless_they_are_of_one_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path, "a.svs", "b.svs")
    (tmp_path / "c.svs").symlink_to("a.svs")
    (tmp_path / "d.svs").hardlink_to(tmp_path / "b.svs")
    for _ in range(2):
        assert named(tmp_path) == [*"abcd"]
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("note: c and a (and 1 more) are links to one file")
    (tmp_path / "slides.csv").write_text("path,source\na.svs,p\nb.svs,q\nc.svs,p\nd.svs,q\ngone.svs,r\nlost.svs,r\n")
    assert len(named(tmp_path / "slides.csv")) == 6 and not capsys.readouterr().out


def test_paths_do_not_lead_through_folders_that_may_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored of ../slides is right when the folder where it was typed has another name."""
    touch(tmp_path, "slides/a.svs", "work/b.svs")
    monkeypatch.chdir(tmp_path / "work")
    for place in ("../slides", "../slides/a.svs"):
        (slide,) = find_slides([Path(place)])
        assert (slide.name, slide.path) == ("a", tmp_path / "slides" / "a.svs")
    assert len(find_slides([Path("../slides"), tmp_path / "slides" / "a.svs"])) == 1


def test_a_name_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "Gewebe\udce4.svs")
    with pytest.raises(UserError, match=r"The file name .*Gewebe.* is not UTF-8: rename the file"):
        named(tmp_path)


def test_two_slides_with_one_name_are_told_apart(tmp_path: Path) -> None:
    touch(tmp_path, "one/s.svs", "two/s.svs", "two/s.tif")
    assert named(tmp_path) == ["one/s", "two/s.svs", "two/s.tif"]
    assert named(tmp_path / "one") == ["s"]
    touch(tmp_path, "two/s.svs.tif")
    with pytest.raises(UserError, match=r"two slides are called two/s\.svs: give each its own name in a table"):
        named(tmp_path)
    (tmp_path / "two" / "s.svs.tif").unlink()
    assert named(tmp_path, tmp_path / "one") == ["one/s", "two/s.svs", "two/s.tif"]


def test_a_slide_is_called_the_same_whatever_else_is_given(tmp_path: Path) -> None:
    """Its results are found by its name."""
    touch(tmp_path, "a/b/s.svs", "c/t.svs", "c/d/u.svs", "e/s.svs")
    alone = [named(tmp_path / place) for place in ("a/b/s.svs", "c")]
    assert alone == [["s"], ["d/u", "t"]]
    assert named(tmp_path / "a/b/s.svs", tmp_path / "c") == ["d/u", "s", "t"]
    assert named(tmp_path / "a/b/s.svs", tmp_path / "e/s.svs") == ["a/b/s", "e/s"]  # which one name would mix up


def test_blanks_around_a_name_are_none_of_it(tmp_path: Path) -> None:
    """Tables are read without them, and would name another slide."""
    touch(tmp_path, "Case 12 .svs", " x/s.svs", "s .svs", "s.svs")
    assert named(tmp_path) == ["Case 12", "s .svs", "s.svs", "x/s"]


def test_a_folder_without_slides_says_what_they_look_like(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number}.docx" for number in range(500)))
    with pytest.raises(UserError, match=r"hold no slides: files ending in \.svs"):
        find_slides([tmp_path])
    with pytest.raises(UserError, match="does not exist"):
        find_slides([tmp_path / "gone"])


def test_a_table_says_more(tmp_path: Path) -> None:
    """What looks like a number is a name."""
    touch(tmp_path, "x/a.svs", "x/b.svs")
    table = tmp_path / "slides.csv"
    table.write_text("path,slide,source,mpp,mask,fold\nx/b.svs,,007,0.25,,01\nx/a.svs,first,7,,a.geojson,1\n")
    first, b = find_slides([table], mpp=0.5)
    assert (b.name, b.source, b.mpp, b.mask, b.columns) == ("x/b", "007", 0.25, None, {"fold": "01"})
    assert (first.name, first.source, first.mpp, first.unsaid_mpp) == ("first", "7", None, 0.5)
    assert (first.mask, first.columns) == (tmp_path / "a.geojson", {"fold": "1"})
    assert first.path == tmp_path / "x" / "a.svs"


def test_a_table_is_given_alone(tmp_path: Path) -> None:
    """It would be taken for a slide that cannot be read, and its slides be left out."""
    touch(tmp_path, "a.svs")
    (tmp_path / "slides.CSV").write_text("path\na.svs\n")
    with pytest.raises(UserError, match=r"slides\.CSV is a table: give it alone"):
        find_slides([tmp_path / "a.svs", tmp_path / "slides.CSV"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file\na.svs\n", "needs a column `path`"),
        ("path\n", "a line for each slide"),
        ("path,slide\na.svs,s\nb.svs,s\n", "two slides are called s"),
        ("path,mpp\na.svs,-1\n", "no resolution"),
        ("path,mpp\na.svs,fine\n", "`mpp` holds string, not double .*fine"),
        ("path,slide\na.svs,../up\n", "cannot name a slide"),
        ("path,slide\na.svs,a/b\nb.svs,a//b\n", "'a//b' cannot name a slide"),  # their files would be the same
        ("path,slide\n,x\n", "has no path"),
        ("path,slide\na.svs,x\nb\0.svs,y\n", "line 3 holds a zero byte"),
        ('path,slide\na.svs,x\n"b.svs,y\nc.svs,z\n', "line 3 has a quote that is not closed"),
        ("path,MPP\na.svs,0.25\n", "has a column `MPP`: write it `mpp`"),
    ],
)
def test_a_table_that_does_not_serve(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "slides.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        find_slides([tmp_path / "slides.csv"])
