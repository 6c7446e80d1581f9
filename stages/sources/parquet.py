"""Parquet as a source, as Hugging Face stores image sets: a column `image` of bytes, and `label`.

Row groups are read completely, so they are the blocks that are shuffled. Listing reads the labels and names, and of the
images only how long a row group's are, by which others are noticed.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import UserError
from stages.sources.class_names import Classes, LabelCheck, check_names, same_words
from stages.sources.listing import Collector, Listing, Source
from stages.storage.store import Store

_ROWS = 64


def list_parquet(store: Store, files: Sequence[str], classes: Classes, context: str) -> Listing:
    """List the images of Parquet files.

    Labels that are numbers are class indices; names in the files' own description come with them. Where `classes`
    lists those names, names decide; where it lists none of them and as many others, numbers do, which is reported.

    Raises:
        UserError: if a file is damaged or has no such columns, files differ, or a label is no class.
    """
    collector, check = Collector(), LabelCheck(classes)
    first: tuple[bool, tuple[str, ...] | None] | None = None
    names: tuple[str, ...] | None = None
    warnings: list[str] = []
    for number, path in enumerate(files):
        name = store.display_path(path)
        try:
            with store.stream(path) as stream:
                file = pq.ParquetFile(stream)
                columns = _columns(file.schema_arrow, name)
                described = _described(file.schema_arrow)
                form = (_is_text(file.schema_arrow.field("label").type), described)
                if first is None:
                    first = form
                    names, warnings = _names(described, classes, context)
                elif form != first:
                    raise UserError(
                        f"{context}: {path} has labels of another kind or other class names than {files[0]}; name "
                        "files that are alike"
                    )
                _list_file(file, columns, number, path, names, check, name, collector)
        except (pa.ArrowException, OSError, IndexError, KeyError, UnicodeDecodeError) as error:
            cause = str(error).split("\n")[0]
            raise UserError(f"{name}: not a whole Parquet file of labelled images ({cause})") from None
    source = Source(store.absolute, "rows", tuple(files))
    what = f"{len(files):,} Parquet file{'s' if len(files) != 1 else ''}, classes from the column label"
    order = first[1] if first else None
    return collector.listing(source, classes, context, what=what, order=order, warnings=warnings)


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


def _names(
    described: tuple[str, ...] | None, classes: Classes, context: str
) -> tuple[tuple[str, ...] | None, list[str]]:
    """What labels that are numbers are called, None = by number alone; and what to warn of.

    Raises:
        UserError: if the files' names and the given ones are the same in part.
    """
    if described is None or not isinstance(classes, tuple) or set(described) <= set(classes):
        try:
            check_names(described or ())
        except ValueError as error:
            raise UserError(
                f"{context}: its files describe their labels, but {error}; correct that description, or list "
                f"{len(described or ())} other names in source.classes"
            ) from None
        return described, []
    ours, theirs = [same_words(one) for one in classes], [same_words(one) for one in described]
    other = next(one for one in described if one not in set(classes))
    if ours == theirs:
        return None, []
    if set(ours) & set(theirs) or len(ours) != len(theirs):
        same, number = set(ours) & set(theirs), min(len(ours), len(theirs))
        lacks = f"class {other if same or len(ours) > len(theirs) else number} is not among the {len(classes)}"
        raise UserError(
            f"{context}: {lacks} of source.classes or of the train split (the files call their {len(described)} "
            f"classes {described[0]}, …); rename it there, or unset source.classes to take the files' names"
        )
    return None, [
        f"the files call their {len(described)} classes by other names than source.classes: their numbers are taken as "
        f"indices, so that {described[0]} is {classes[0]}, and {described[-1]} is {classes[-1]}"
    ]


def _list_file(
    file: pq.ParquetFile,
    columns: list[str],
    number: int,
    path: str,
    names: tuple[str, ...] | None,
    check: LabelCheck,
    context: str,
    into: Collector,
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
                class_name = _class(label, names, check, f"{context}, row {first + row}")
                into.add(class_name, name, file=number, block=block, offset=row, size=size)
        first += len(labels)


def _class(label: str | int, names: tuple[str, ...] | None, check: LabelCheck, context: str) -> str | int:
    """The class of a label.

    Raises:
        UserError: naming the row, if the label has no class.
    """
    if isinstance(label, str):
        try:
            check(label)
        except ValueError as error:
            raise UserError(f"{context}: the label {label[:40]!a} {error}") from None
        return label
    if label < 0 or (names and label >= len(names)):
        known = f"of which the files name {len(names)}" if names else "0, 1, 2 and so on"
        raise UserError(f"{context}: the label {label} is no class index, {known}; remove unlabelled rows")
    return names[label] if names else label


def _image_bytes(group: Any) -> int:
    """Bytes of a row group's images as they are stored; other images have other lengths."""
    columns = (group.column(number) for number in range(group.num_columns))
    return sum(one.total_compressed_size for one in columns if one.path_in_schema.split(".")[0] == "image")


def _columns(schema: pa.Schema, context: str) -> list[str]:
    """The columns that a listing reads: all but the bytes."""
    kinds = {field.name: field.type for field in schema}
    image, label = kinds.get("image", pa.null()), kinds.get("label", pa.null())
    has_path = False
    if pa.types.is_struct(image):
        fields = {field.name: field.type for field in image}
        image, has_path = fields.get("bytes", pa.null()), "path" in fields
    wrong = [
        f"{name} is {kinds[name]}" if name in kinds else f"{name} is missing"
        for name, good in (
            ("image", _is_bytes(_plain(image))),
            ("label", pa.types.is_integer(_plain(label)) or _is_text(label)),
        )
        if not good
    ]
    if wrong:
        raise UserError(
            f"{context}: needs a column image (bytes, or a struct with them) and a column label (whole number or "
            f"string), but {' and '.join(wrong)}; rename or convert the columns that are meant; it has "
            + ", ".join(kinds)
        )
    return ["label", "image.path"] if has_path else ["label"]


def _plain(kind: pa.DataType) -> pa.DataType:
    """A column's type, and of a dictionary the type of its values."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def _described(schema: pa.Schema) -> tuple[str, ...] | None:
    """The class names that Hugging Face's description of the columns holds."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(text)["info"]["features"]["label"]["names"] if text else ()
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(names, list):
        return None
    return tuple(name if isinstance(name, str) else "" for name in names) or None
