"""Members of a tar are those that tarfile finds, and a hostile header ends in one line, soon and in little memory."""

import io
import resource
import subprocess
import sys
import tarfile
import time

import pytest

from schemas.errors import UserError
from stages.sources.discover import list_source
from stages.sources.headers import members
from tests.support.hostile import picture, tar
from tests.support.world import ROOT

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "GNU": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = f"a/{'深い' * 60}/{'x' * 90}.jpg"


def header(name: str, size: int = 0, kind: bytes = b"0", **fields) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(**records) -> bytes:
    lines = b""
    for key, value in records.items():
        line = f" {key}={value}\n".encode()
        count = len(line) + 1
        while len(str(count)) + len(line) != count:
            count += 1
        lines += str(count).encode() + line
    return header("pax", len(lines), b"x") + padded(lines)


def with_size(block: bytes, field: bytes) -> bytes:
    """A header with another length in it, and the right checksum."""
    changed = bytearray(block)
    changed[124:136] = field
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


END = bytes(1024)
BASE_256 = b"\x80" + (1 << 40).to_bytes(11)


@pytest.mark.parametrize("form", FORMATS)
def test_members_are_those_that_tarfile_finds(tmp_path, form):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=FORMATS[form]) as out:
        for name, kind in (
            ("./a/1.jpg", tarfile.REGTYPE), ("a", tarfile.DIRTYPE), ("b/2.jpg", tarfile.SYMTYPE),
            ("c.fifo", tarfile.FIFOTYPE),
            (LONG if form != "ustar" else "x" * 90 + "/" + "y" * 90, tarfile.REGTYPE), ("é.jpg", tarfile.REGTYPE),
            ("h.jpg", tarfile.LNKTYPE), ("empty.jpg", tarfile.REGTYPE),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "z" * 150 if form != "ustar" else "z"
            info.size = 700 if kind == tarfile.REGTYPE and name != "empty.jpg" else 0
            out.addfile(info, io.BytesIO(bytes(700)))
    with tarfile.open(path) as known, path.open("rb") as file:
        expected = [(m.name.removeprefix("./"), m.offset_data, m.size) for m in known if not m.isdir()]
        found = list(members(file, "x"))
    assert [(m.name, m.offset, m.size) for m in found] == expected
    faults = {m.name: m.fault for m in found if m.fault}
    assert faults == {"b/2.jpg": "is a link", "h.jpg": "is a link", "c.fifo": "is not a plain file"}


def test_lengths_in_base_256_and_in_pax_headers_are_read():
    size = b"\x80" + (700).to_bytes(11)
    data = with_size(header("a.jpg"), size) + bytes(1024) + pax(size=5) + header("b.jpg", 1000) + bytes(512) + END
    assert [(m.name, m.size) for m in members(io.BytesIO(data), "x")] == [("a.jpg", 700), ("b.jpg", 5)]


def test_tars_behind_each_others_ends_are_read_on_and_rubbish_there_is_refused(tmp_path, refused):
    one, two = (tar(tmp_path / kind, {f"{kind}/{n}.jpg": picture(kind) for n in range(3)}) for kind in "ab")
    both = tmp_path / "both.tar"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    assert len(list_source(str(both), "train", None).images) == 6
    both.write_bytes(one.read_bytes() + b"rubbish" * 100)
    assert "not a whole tar (700 bytes behind its end are no tar)" in refused(list_source, str(both), "train", None)


HOSTILE = {
    "a length that leads back, CVE-2025-8194": pax(size=-1536) + header("a/x.jpg") + END,
    "a negative length in base 256": with_size(header("a/x.jpg"), b"\xff" * 10 + b"\xfa\x00") + END,
    "a negative length in octal": with_size(header("a/x.jpg"), b"-0000003000\0") + END,
    "a length of a terabyte": with_size(header("a/x.jpg"), BASE_256) + END,
    "a length that is no number": with_size(header("a/x.jpg"), b"zzzzzzzzzzz\0") + END,
    "a length in pax of thirty digits": pax(size="9" * 30) + header("a/x.jpg") + END,
    "a long name of a terabyte": with_size(header("x", kind=b"L"), BASE_256) + END,
    "a long name of negative length": with_size(header("x", kind=b"L"), b"\xff" * 10 + b"\xfa\x00") + END,
    "twenty thousand pax headers": pax(path="a/x.jpg") * 20_000 + header("x") + END,
    "a pax header of a terabyte": with_size(header("x", kind=b"x"), BASE_256) + END,
    "a pax header of digits": header("x", 1 << 20, b"x") + b"1" * (1 << 20) + header("x") + END,
    "a pax record that ends before it begins": header("x", 8, b"x") + padded(b"0 a=bcd\n") + header("x") + END,
    "a long name and no member": header("x", 4, b"L") + padded(b"name") + END,
    "maps of a sparse file without end": header("x", kind=b"S")[:482] + b"\1" + header("x")[483:] + b"\1" * 5120,
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_header_ends_in_one_line_and_soon(tmp_path, refused, what):
    path = tmp_path / "x.tar"
    path.write_bytes(HOSTILE[what])
    start = time.monotonic()
    line = refused(list_source, str(path), "train", None)
    assert f"{path}: not a whole tar (" in line
    assert time.monotonic() - start < 5


def test_tiny_sources_do_not_take_memory(tmp_path):
    """Under a limit of address space that a terabyte, or two thousand million names, would not fit in."""
    paths = []
    for number, data in enumerate(HOSTILE.values()):
        paths.append(tmp_path / f"{number}.tar")
        paths[-1].write_bytes(data)
    paths.append(tar(tmp_path / "many.tar", {"x.jpg": picture(), "x.cls": b"2000000000"}))
    code = (
        "import sys\nfrom schemas.errors import UserError\nfrom stages.sources.discover import list_source\n"
        "for path in sys.argv[1:]:\n"
        "    try: list_source(path, 'train', None)\n    except UserError as error: print(error)\n"
    )
    limit = 6 << 30  # of which libraries map most and use little
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)], cwd=ROOT, capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(paths)


def test_a_damaged_member_is_found_before_anything_behind_it(tmp_path):
    data = header("a/1.jpg", 3) + padded(b"abc") + header("a/2.jpg", 10_000) + padded(b"abc") + END
    seen = []
    with pytest.raises(UserError, match="reaches beyond its end"):
        seen.extend(members(io.BytesIO(data), "x"))
    assert [member.name for member in seen] == ["a/1.jpg"]
