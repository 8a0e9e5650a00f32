"""Exceptions that end a command in one sentence."""

from __future__ import annotations

LONGEST = 1500  # characters of a sentence


def printable(text: str) -> str:
    r"""A text that a terminal shows and does not obey: what is not printable as escapes, but for ends of lines.

    >>> print(printable("a\x1b[2Jb\u202e.svs"))
    a\x1b[2Jb\u202e.svs
    """
    return "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in text)


class UserError(Exception):
    """Something the user can mend: one sentence that names the file or setting, and the remedy.

    The command line prints it without a traceback (`--debug` shows one). What a terminal would obey (a file's name may
    hold anything) is written out, and the middle of what nobody would read left out.
    """

    def __str__(self) -> str:
        text = printable(super().__str__()).replace("\n", "\\n")
        return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} [...] {text[-LONGEST // 2 :]}"


EXTRAS = {
    "openslide": ("slides", "features"),
    "skimage": ("slides", "features", "evaluation"),
    "shapely": ("slides", "features", "evaluation"),
    "pycocotools": ("slides", "features", "evaluation"),
    "imagehash": ("evaluation",),
    "segmentation_models_pytorch": ("evaluation",),
    "h5py": ("features",),
    "tensorboard": ("trackers",),
    "distributed": ("cluster",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "starlette": ("viewer",),
    "uvicorn": ("viewer",),
}
"""Packages that colocate does without until they are needed, and the extras that bring each."""


def not_installed(package: str, extras: tuple[str, ...] = ()) -> str:
    """The sentence about a package that is missing; `extras` are those that the command at hand stands on.

    >>> not_installed("shapely", ("evaluation",))
    "shapely is not installed: pip install 'colocate[evaluation]'"
    """
    bring = EXTRAS[package]
    wanted = extras if {*bring} & {*extras} else (*extras, bring[0])
    return f"{package} is not installed: pip install 'colocate[{','.join(wanted)}]'"


class TileError(UserError):
    """A tile that cannot be read: skipped and listed while training."""


class Interrupted(Exception):
    """The run was asked to stop and has saved itself; the message says how to go on."""
