"""What one GPU host does with the whole pipeline, section by section, into docs/evidence/gpu-<card>.json.

    PYTHONPATH=. python benchmarks/gpu.py --photographs FOLDER --weights tf_efficientnet_lite0.safetensors --minutes 10

Needs one GPU and no network. A section runs in a process of its own and is recorded as soon as it ends, its figures or
its error, with commit, command and versions; what is recorded from this commit is not run again (`--again` does). The
photographs are a folder of one folder a class; without them photograph-like pictures are made. Weights are
tf_efficientnet_lite0's; without them random ones are used, and the record says so. RegNetY's are random in any case,
which does not change a speed. On a machine without a GPU everything runs at toy size: it shows that the script works,
and its figures mean nothing.

Times are of CUDA events or taken after synchronising, after warming up; medians of repeated turns.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_LEAST_SECONDS = 15
# What takes seconds to import is imported in functions: every data process imports this file again.


def main() -> None:
    """Parse the command line, run the sections, print the table."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for a GPU must not open it: sections are forks
    import torch
    from gpu_bench import Bench
    from gpu_sections import SECTIONS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", default="", help="a folder of JPEG files, one folder a class")
    parser.add_argument("--weights", default="", help="tf_efficientnet_lite0.safetensors")
    parser.add_argument("--minutes", type=float, default=30.0, help="begin no section after, and end the last then")
    parser.add_argument("--only", default="", help=f"sections, with commas between them, of {', '.join(SECTIONS)}")
    parser.add_argument("--again", action="store_true", help="also sections that are recorded from this commit")
    parser.add_argument("--out", default=str(ROOT / "docs" / "evidence"), help="where the record is written")
    parser.add_argument("--work", default="", help="a folder for images and workspaces, kept; default: a temporary one")
    parser.add_argument("--toy", action="store_true", help="toy size, as on a machine without a GPU")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else list(SECTIONS)
    if unknown := [name for name in wanted if name not in SECTIONS]:
        parser.error(f"unknown section {unknown[0]}; there are {', '.join(SECTIONS)}")
    end = time.monotonic() + 60 * arguments.minutes
    toy = arguments.toy or not torch.cuda.is_available()
    if toy:
        torch.compiler.set_stance("force_eager")  # compiling takes a minute a network
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        bench = Bench(Path(arguments.work or folder).resolve(), arguments.photographs, arguments.weights, toy)
        record = Record(Path(arguments.out), "cpu-toy" if toy else card())
        for name in wanted:
            if arguments.again or not record.has(name):
                record.put(name, run(name, bench, end))
        print(record.table())


def run(name: str, bench: Any, end: float) -> dict[str, Any]:
    """A section's figures, or its error, from a process of its own that ends at a moment of the monotonic clock."""
    left = end - time.monotonic()
    if left < _LEAST_SECONDS:
        return {"error": "no time was left"}
    began = time.monotonic()
    print(f"{name} ...", file=sys.stderr, flush=True)
    context = multiprocessing.get_context("fork")  # it has torch and the project loaded, and no GPU opened
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_section, args=(name, bench, theirs))
    child.start()
    theirs.close()
    found: dict[str, Any] = {"error": f"not done after {left:.0f} s"}
    if ours.poll(left):
        try:
            found = ours.recv()
        except EOFError:
            child.join()
            found = {"error": f"its process ended with {child.exitcode}"}
    if "error" in found:
        os.killpg(child.pid or 0, 9)  # with all that it started
    child.join()
    print(f"{name}: {json.dumps(found)[:300]}", file=sys.stderr, flush=True)
    return found | {"seconds": round(time.monotonic() - began, 1)}


def _section(name: str, bench: Any, answer: Any) -> None:
    from gpu_sections import SECTIONS

    os.setpgid(0, 0)
    try:
        answer.send(SECTIONS[name](bench))
    except BaseException as error:
        traceback.print_exc()
        answer.send({"error": "".join(traceback.format_exception_only(error)).strip()[-2000:]})
    os._exit(0)  # whatever threads and data processes a section left


class Record:
    """The evidence of one card: a JSON file, written anew after every section."""

    def __init__(self, folder: Path, card: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"gpu-{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.json"
        self._found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self._found |= {"card": card, "machine": machine()}
        self._commit = commit()

    def has(self, name: str) -> bool:
        """Whether this commit's figures of a section are there."""
        section = self._found.get("sections", {}).get(name, {})
        return "error" not in section and section.get("commit") == self._commit

    def put(self, name: str, found: dict[str, Any]) -> None:
        """Record a section; an error leaves the figures of an earlier commit beside it."""
        sections = self._found.setdefault("sections", {})
        about = {"commit": self._commit, "command": shown_command(), "versions": versions(), **found}
        if "error" in found and (before := sections.get(name)) and "figures" in before:
            about |= {"earlier": {key: before[key] for key in ("commit", "figures")}}
        sections[name] = about
        half = self.path.with_suffix(".tmp")
        half.write_text(json.dumps(self._found, indent=1, sort_keys=True) + "\n")
        half.replace(self.path)

    def table(self) -> str:
        """All figures, a line each."""
        from gpu_sections import SECTIONS

        lines = [f"{self._found['card']}, {self._found['machine']['cores']} cores", ""]
        for name in SECTIONS:
            section = self._found.get("sections", {}).get(name)
            if section is None:
                continue
            lines.append(f"{name}  ({section.get('seconds', 0):.0f} s, {section['commit']})")
            lines += _lines(section["error"] if "error" in section else section["figures"], 2)
        return "\n".join(lines)


def _lines(value: Any, indent: int) -> list[str]:
    """A value as indented lines; a table without tables in it is one line."""
    pad = " " * indent
    if not isinstance(value, dict):
        return [f"{pad}{value}"]
    if not any(isinstance(one, dict) for one in value.values()):
        return [pad + "  ".join(f"{key} {_short(one)}" for key, one in value.items())]
    lines = []
    for key, one in value.items():
        below = _lines(one, indent + 2)
        lines += [f"{pad}{key:28}{below[0].strip()}"] if len(below) == 1 else [f"{pad}{key}", *below]
    return lines


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def card() -> str:
    """The GPU's name, asked of a process that ends with the question."""
    ask = "import torch; print(torch.cuda.get_device_name())"
    return subprocess.run([sys.executable, "-c", ask], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def machine() -> dict[str, Any]:
    """What the host is."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": model.group(1) if model else platform.machine(),
        "memory_gib": round(memory / 2**30),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """The libraries that matter to a figure."""
    import cv2
    import timm
    import torch
    import torchvision

    own = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}
    return own | {"opencv": cv2.__version__, "cuda": str(torch.version.cuda)}


def commit() -> str:
    """The checkout's commit, "+" where it was changed; what DEIT_COMMIT says where git knows nothing."""
    ask = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    found = subprocess.run(
        ask, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout.strip()
    return os.environ.get("DEIT_COMMIT") or found or "unknown"


def shown_command() -> str:
    """The command without the folders of one machine."""
    words = [word if "/" not in word else Path(word).name for word in sys.argv[1:]]
    return " ".join(["python benchmarks/gpu.py", *words])


if __name__ == "__main__":
    main()
