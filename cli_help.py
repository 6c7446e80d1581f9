"""What `--help` teaches beside the words at each option: options in groups, and examples that can be typed."""

from typing import Any

from typer.core import TyperCommand

_GROUPS = {
    "config": "Run file",
    "set_": "Run file",
    "address": "How it runs",
    "retry_failed": "How it runs",
    "dry_run": "How it runs",
    "json_": "How it runs",
    "help": "How it runs",
}
"""Options that many verbs share, by their names in the code; all others are the verb's own."""

EXAMPLES = {
    "init": [
        "deit-pipeline init --preset deit-s-distilled",
        "deit-pipeline init tiny.toml --preset deit-ti-distilled --force",
    ],
    "demo": ["deit-pipeline demo --folder runs/demo"],
    "shard": ["deit-pipeline shard --dry-run", "deit-pipeline shard --set source.train=photos --set source.val=''"],
    "label-teacher": ["deit-pipeline label-teacher", "deit-pipeline label-teacher --address auto --retry-failed"],
    "train": ["deit-pipeline train --dry-run", "deit-pipeline train --follow --set train.name=second"],
    "evaluate": [
        "deit-pipeline evaluate",
        "deit-pipeline evaluate --source imagenet-v2 --class-folders indices",
        "deit-pipeline evaluate --model resnet50 --throughput",
    ],
    "compare": ["deit-pipeline compare hard soft none"],
    "export": ["deit-pipeline export --format huggingface --out model"],
    "run": ["deit-pipeline run --dry-run", "deit-pipeline run --address auto"],
    "estimate": [
        "deit-pipeline estimate --price 3.20",
        "deit-pipeline estimate --rates docs/evidence/gpu-nvidia-h200.json --images 1281167",
    ],
    "status": ["deit-pipeline status", "deit-pipeline status --json"],
    "report": ["deit-pipeline report", "deit-pipeline report --compare hard soft --out both.html"],
    "verify": ["deit-pipeline verify", "deit-pipeline verify --deep --parts 4"],
    "doctor": ["deit-pipeline doctor"],
    "views": ["deit-pipeline inspect views --sample 17 --out sheet.png"],
    "labels": ["deit-pipeline inspect labels"],
    "stability": ["deit-pipeline inspect stability --views 512"],
    "show": ["deit-pipeline config show --set train.epochs=100"],
    "diff": ["deit-pipeline config diff deit.toml runs/deit/runs/deit/run.toml"],
}
"""By verb; each can be parsed, which a test does."""


class Verb(TyperCommand):
    """A verb whose help has its options in groups and ends with examples."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, the verb's own options, then those that many verbs share."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], "Run file": [], "How it runs": []}
        for one in self.get_params(ctx):
            if record := one.get_help_record(ctx):
                own = "Arguments" if one.param_type_name == "argument" else "Options"
                groups[_GROUPS.get(one.name or "", own)].append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        if examples := EXAMPLES.get(self.name or ""):
            with formatter.section("Examples"):
                for line in examples:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def teach(*apps: Any) -> None:
    """Give every verb of typer's apps this help."""
    for app in apps:
        for verb in app.registered_commands:
            verb.cls = Verb
