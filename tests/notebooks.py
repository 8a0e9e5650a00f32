"""Run a notebook, again where the kernel's answer was lost."""

from __future__ import annotations

import copy
from typing import Any

from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError
from nbformat import NotebookNode

TIMES, CELL_S = 3, 180


def executed(notebook: NotebookNode, timeout: float = CELL_S, **options: Any) -> NotebookNode:
    """The notebook with its outputs; each of its cells may take so many seconds.

    A client that hears its kernel a moment too late waits for ever (jupyter_client's issue 593).

    Raises:
        CellExecutionError: a cell has an error.
        CellTimeoutError: a cell took too long, time after time.
    """
    for _ in range(TIMES - 1):
        try:
            return NotebookClient(copy.deepcopy(notebook), timeout=timeout, **options).execute()
        except (CellTimeoutError, RuntimeError):  # of the second kind: a kernel that does not answer at all
            continue
    return NotebookClient(notebook, timeout=timeout, **options).execute()
