"""beartype, which accepts an int where a float is annotated, as is usual in Python."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
