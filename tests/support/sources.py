"""One image folder in every other form that a source may have."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.world import CLASSES


def files(root: Path) -> dict[str, bytes]:
    """Path below the root → bytes, sorted."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.*"))}


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def tar_of_folder(root: Path, out: Path) -> str:
    return str(write_tar(out / "folder.tar", {f"./{name}": data for name, data in reversed(files(root).items())}))


def tar_of_splits(root: Path, out: Path) -> str:
    """As CIFAR-10 comes: test first."""
    splits = {f"test/{name}": b"x" for name in files(root)} | {f"train/{n}": data for n, data in files(root).items()}
    return str(write_tar(out / "splits.tar", splits))


def path_into_tar(root: Path, out: Path) -> str:
    return f"{tar_of_splits(root, out)}/train"


def class_tars(root: Path, out: Path) -> dict[str, bytes]:
    for name in CLASSES:
        write_tar(out / f"{name}.tar", {path.name: path.read_bytes() for path in sorted((root / name).iterdir())})
    return {f"{name}.tar": (out / f"{name}.tar").read_bytes() for name in CLASSES}


def tar_of_class_tars(root: Path, out: Path) -> str:
    """As the official training archive comes."""
    return str(write_tar(out / "ILSVRC2012_img_train.tar", class_tars(root, out / "parts")))


def folder_of_class_tars(root: Path, out: Path) -> str:
    class_tars(root, out / "classes")
    return str(out / "classes")


def kaggle(root: Path, out: Path) -> str:
    target = out / "kaggle/ILSVRC/Data/CLS-LOC"
    target.mkdir(parents=True)
    (target / "train").symlink_to(root)
    return str(out / "kaggle")


def sample_tars(root: Path, out: Path) -> str:
    """WebDataset tars with class names, the image first in one and last in the other."""
    for number, half in enumerate((slice(0, 30), slice(30, 61))):
        members: dict[str, bytes] = {"README": b"not a sample"} if number else {}
        for name, data in list(files(root).items())[half]:
            stem, suffix = name.replace("/", "-").rsplit(".", 1)
            pair = [(f"{stem}.{suffix}", data), (f"{stem}.cls", name.split("/")[0].encode())]
            members |= dict(pair[:: -1 if number else 1])
        write_tar(out / f"wds-{number:04d}.tar", members)
    return str(out / "wds-{0000..0001}.tar")


def parquet(root: Path, out: Path) -> str:
    """As Hugging Face stores it, in two files of several row groups, with the names of the classes."""
    label = {"_type": "ClassLabel", "names": list(CLASSES)}
    about = json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}})
    rows = [
        {"image": {"bytes": data, "path": Path(name).name}, "label": CLASSES.index(name.split("/")[0])}
        for name, data in files(root).items()
    ]
    (out / "data").mkdir(parents=True, exist_ok=True)
    for number, part in enumerate((rows[:40], rows[40:])):
        table = pa.Table.from_pylist(part).replace_schema_metadata({"huggingface": about})
        pq.write_table(table, out / f"data/train-{number:05d}.parquet", row_group_size=7)
    return str(out / "data/train-*.parquet")
