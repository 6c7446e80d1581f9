"""An S3 file system is pickled as its options, which is how they are changed."""

import pyarrow.fs as pafs

from stages.storage.pyarrow_compat import rebuilt


def test_a_file_system_keeps_the_options_of_its_uri_and_takes_changed_ones():
    uri = "s3://key:s%2Fecret@bucket/a?scheme=http&endpoint_override=127.0.0.1:9&region=eu-west-1"
    fs, _ = pafs.FileSystem.from_uri(uri)
    changed = rebuilt(fs, {"request_timeout": 7.0, "allow_delayed_open": True})
    _, (before,) = fs.__reduce__()
    _, (after,) = changed.__reduce__()
    assert isinstance(changed, pafs.S3FileSystem) and changed.region == "eu-west-1"
    assert (after["access_key"], after["secret_key"], after["endpoint_override"]) == ("key", "s/ecret", "127.0.0.1:9")
    assert (after["request_timeout"], after["allow_delayed_open"]) == (7.0, True)
    assert {key for key in before if before[key] != after[key]} == {"request_timeout", "allow_delayed_open"}
