"""What pyarrow has no public way to; `tests/storage/test_pyarrow_compat.py` fails when it changes."""

from typing import Any

import pyarrow.fs as pafs


def rebuilt(fs: pafs.FileSystem, changes: dict[str, Any]) -> pafs.FileSystem:
    """An S3 file system with some of its options changed: only a URI's own options can be given beside a URI.

    It is built from what it is pickled as, which lacks `tls_verify_certificates` and `smart_defaults`.
    """
    build, (settings,) = fs.__reduce__()
    return build(settings | changes)
