"""Sources: where images lie, as listings that a shard's maker can read anywhere.

A source is told apart by what it is, not by a key that says so: `find.py` looks at the path and hands it to
`folder.py`, `tars.py` or `parquet.py`; `labels.py` says what classes are called; `reading.py` opens the images again.
"""
