"""Figures as JSON, Markdown and a picture in the workspace."""

import io
from typing import Any

from PIL import Image

from stages.storage.commit import put_json
from stages.storage.store import Store


def put_report(store: Store, file: str, result: dict[str, Any]) -> None:
    """Put a JSON file that is no part's, and remove what killed commands have left of such files."""
    store.remove_stale_temp_files(below=False)
    put_json(store, file, result)


def put_figures(store: Store, name: str, result: dict[str, Any], text: str, picture: Image.Image | None) -> list[str]:
    """Put figures as JSON, Markdown and, where there is one, a picture; the files' names."""
    put_report(store, f"{name}.json", result)
    store.put(f"{name}.md", text.encode())
    if picture is None:
        return [f"{name}.json", f"{name}.md"]
    out = io.BytesIO()
    picture.save(out, "PNG")
    store.put(f"{name}.png", out.getvalue())
    return [f"{name}.json", f"{name}.md", f"{name}.png"]
