"""Sources: listings of images that the maker of a shard can read on any node.

A source is recognised from its content, not by a key: `discover.py` looks at the path and passes it to
`image_folder.py`, `tar.py` or `parquet.py`; `class_labels.py` has the class names; `reader.py` reads the images.
"""
