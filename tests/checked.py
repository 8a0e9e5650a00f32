"""The run-time type checker of the tests: beartype, with an int passing for a float as it does for pyright."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
