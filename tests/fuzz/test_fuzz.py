"""Whatever stands in a file, the answer is a result or one sentence: forty mutations of each kind of file."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import watch
from tests.fuzz.readers import READERS


@pytest.mark.slow
def test_mutated_files_give_a_result_or_a_sentence() -> None:
    assert watch(list(READERS), 40) == []
