"""Parquet as a source, as Hugging Face stores image sets: a column `image` of bytes, and `label`.

Row groups are read whole, so they are the blocks that are shuffled. Listing reads the labels and names, and of the
images only how long a row group's are, by which others are noticed.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import PipelineError
from stages.sources.listing import Classes, Collector, Listing, Source
from stages.store import Store

_ROWS = 64


def list_parquet(store: Store, files: Sequence[str], classes: Classes, where: str) -> Listing:
    """List the images of Parquet files.

    Labels that are numbers are class indices; names in the files' own description come with them. Where `classes`
    holds those names, names decide, else numbers do.

    Raises:
        PipelineError: if a file is damaged or has no such columns, or a label is no class.
    """
    collector = Collector()
    described: Classes = None
    for number, path in enumerate(files):
        name = store.name(path)
        try:
            with store.stream(path) as stream:
                file = pq.ParquetFile(stream)
                columns = _columns(file.schema_arrow, name)
                described = _described(file.schema_arrow)
                by_name = described if described and (classes is None or set(described) <= set(classes)) else None
                _list_file(file, columns, number, path, by_name, collector)
        except (pa.ArrowException, OSError, IndexError) as error:
            cause = str(error).split("\n")[0]
            raise PipelineError(f"{name}: not a whole Parquet file of labelled images ({cause})") from None
    source = Source(store.absolute, "rows", tuple(files))
    return collector.listing(source, classes, where, order=described)


def read_rows(file: Any, wanted: dict[int, set[int]]) -> Iterator[tuple[int, int, bytes]]:
    """Block, row in it and image bytes of the wanted rows of blocks, read a few rows at a time.

    Args:
        file: the open Parquet file.
        wanted: block → rows in it.
    """
    parquet = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    for block, rows in wanted.items():
        first = 0
        for batch in parquet.iter_batches(_ROWS, row_groups=[block], columns=["image"]):
            image = batch["image"]
            data = image.field("bytes") if pa.types.is_struct(image.type) else image
            for row in range(first, first + len(data)):
                if row in rows:
                    yield block, row, data[row - first].as_py() or b""
            first += len(data)


def _list_file(
    file: pq.ParquetFile, columns: list[str], number: int, path: str, names: Classes, into: Collector
) -> None:
    first = 0
    for block in range(file.num_row_groups):
        table = file.read_row_group(block, columns=columns)
        labels = table["label"].to_pylist()
        size = _image_bytes(file.metadata.row_group(block))
        paths = table["image"].combine_chunks().field("path").to_pylist() if "image" in table.column_names else []
        for row, label in enumerate(labels):
            name = f"{path}/{first + row}" + (f"/{paths[row]}" if paths and paths[row] else "")
            if label is None:
                into.refuse(name, "has no label")
            else:
                class_name = names[label] if names and isinstance(label, int) else label
                into.add(class_name, name, file=number, block=block, offset=row, size=size)
        first += len(labels)


def _image_bytes(group: Any) -> int:
    """Bytes of a row group's images as they are stored; other images have other lengths."""
    columns = (group.column(number) for number in range(group.num_columns))
    return sum(one.total_compressed_size for one in columns if one.path_in_schema.split(".")[0] == "image")


def _columns(schema: pa.Schema, where: str) -> list[str]:
    """The columns that a listing reads: all but the bytes."""
    kinds = {field.name: field.type for field in schema}
    image, label = kinds.get("image", pa.null()), kinds.get("label", pa.null())
    has_path = False
    if pa.types.is_struct(image):
        fields = {field.name: field.type for field in image}
        image, has_path = fields.get("bytes", pa.null()), "path" in fields
    is_binary = pa.types.is_binary(image) or pa.types.is_large_binary(image)
    if not is_binary or not (pa.types.is_integer(label) or pa.types.is_string(label)):
        raise PipelineError(
            f"{where}: needs a column image (bytes, or a struct with them) and a column label (number or string), "
            f"has {', '.join(kinds)}"
        )
    return ["label", "image.path"] if has_path else ["label"]


def _described(schema: pa.Schema) -> Classes:
    """The class names that Hugging Face's description of the columns holds."""
    text = (schema.metadata or {}).get(b"huggingface")
    label = json.loads(text).get("info", {}).get("features", {}).get("label", {}) if text else {}
    return tuple(label["names"]) if label.get("names") else None
