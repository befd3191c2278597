"""The type checker that tests/conftest.py puts on every function: beartype, with int allowed where float is asked for."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
