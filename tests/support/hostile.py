"""Small sources of other people's making, and pictures for them: class a is red, b green, c blue."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stages.sources.discover import list_source
from stages.sources.listing import Listing

COLOURS = {"a": (200, 30, 30), "b": (30, 200, 30), "c": (30, 30, 200)}


def picture(kind: str = "a", form: str = "JPEG", size: tuple[int, int] = (24, 20), seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(-25, 25, (size[1], size[0], 3))
    out = io.BytesIO()
    Image.fromarray(np.clip(np.array(COLOURS[kind]) + noise, 0, 255).astype(np.uint8)).save(out, form)
    return out.getvalue()


def tar(path: Path, members: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def folder(root: Path, classes: Iterable[str] = "ab", each: int = 3, seed: int = 0) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(each):
            (root / name / f"{number}.jpg").write_bytes(
                picture(name[0] if name[0] in "abc" else "a", seed=seed + number)
            )
    return root


def samples(texts: Iterable[bytes], start: int = 0, folder: str = "") -> dict[str, bytes]:
    """Members of a WebDataset tar, an image and a .cls each."""
    members = {}
    for number, text in enumerate(texts, start):
        members |= {f"{folder}{number:05d}.jpg": picture(seed=number), f"{folder}{number:05d}.cls": text}
    return members


def parquet(path: Path, labels: pa.Array, names: Iterable[str] | None = None, image: pa.DataType | None = None) -> Path:
    rows = [{"bytes": picture(seed=number), "path": f"{number}.jpg"} for number in range(len(labels))]
    images = pa.array([row["bytes"] for row in rows], image) if image else pa.array(rows)
    table = pa.table({"image": images, "label": labels})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def listed(path: Path | str, split: str = "train", classes: tuple[str, ...] | None = None) -> Listing:
    return list_source(str(path), split, classes)


def names(listing: Listing) -> list[str]:
    return listing.images["name"].to_pylist()
