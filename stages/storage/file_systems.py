"""The file system behind a URI, opened by pyarrow with the patience that a network needs."""

from urllib.parse import parse_qsl, urlencode

import pyarrow as pa
import pyarrow.fs as pafs

from schemas.errors import UserError
from schemas.secrets import bare_uri, is_encoded
from stages.storage.pyarrow_compat import rebuilt

_RETRIES = 8
"""Of the client, with growing pauses that add up to about six seconds."""
_SILENT_SECONDS = 10
"""Without a byte from an object store, until its client asks again. pyarrow's own are 3, and a store that always needs
longer would never be heard; `request_timeout=SECONDS` among the options of a URI is another number."""


def open_file_system(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI, and the path in it.

    Raises:
        UserError: if there is none.
    """
    shown = bare_uri(uri)
    if not is_encoded(uri):
        raise UserError(
            f"{shown}: its key or secret holds a character that a URI cannot; write it as %XX, such as %2F for /, or "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    try:
        fs, base = _file_system(uri.rstrip("/"))
    except (ValueError, pa.ArrowNotImplementedError, OSError) as error:
        cause = first_line(error).replace(uri_options(uri)[0].rstrip("/"), shown)
        raise UserError(f"{shown}: cannot be opened ({cause})") from None
    if not base.strip("/") and not isinstance(fs, pafs.LocalFileSystem):
        raise UserError(f"{shown}: names no bucket; write it as s3://BUCKET/FOLDER")
    return fs, base


def _file_system(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI, and the path in it; one that is patient, where it is S3."""
    path, options = uri_options(uri)
    chosen = dict(parse_qsl(options[1:]))
    seconds = int(chosen.pop("request_timeout", _SILENT_SECONDS))
    fs, base = pafs.FileSystem.from_uri(path + (f"?{urlencode(chosen)}" if chosen else ""))
    if fs.type_name == "s3" and not chosen.keys() & {"tls_verify_certificates", "smart_defaults"}:
        patience = {"request_timeout": seconds, "retry_strategy": pafs.AwsDefaultS3RetryStrategy(_RETRIES)}
        fs = rebuilt(fs, patience | {"allow_delayed_open": True})  # a small file is one request in place of three
    return fs, base


def uri_options(value: str) -> tuple[str, str]:
    """A path or URI without its options, and these with their question mark."""
    path, mark, options = value.partition("?") if "://" in value else (value, "", "")
    return path, mark + options


def first_line(error: BaseException) -> str:
    """The first line of what pyarrow says."""
    return str(error).split("\n", 1)[0]
