"""All stages in order, and each by its name.

Every stage can be called again after any failure and resumes from stored files. Each returns the object that
`--json` prints. A stage has a module of its own, so that a command loads only what its stage needs.
"""

from collections.abc import Callable
from typing import Any

from pipeline.commands.evaluate import evaluate as evaluate
from pipeline.commands.label import label as label
from pipeline.commands.shard import shard as shard
from pipeline.commands.shard import sharded
from pipeline.commands.train import train as train
from schemas.config import RunFile
from stages.train.plan import TAUGHT

Say = Callable[[str], None]


def everything(config: RunFile, say: Say) -> dict[str, Any]:
    """All stages in order; each is recognised by its manifest where it is done, and sources are not listed again.

    Raises:
        UserError: as the stage raised it.
    """
    results = [sharded(config, say) or shard(config, say)]
    if config.train.distillation in TAUGHT:
        results.append(label(config, say))
    results.append(train(config, say))
    if config.source.val:
        results.append(evaluate(config, say))
    else:
        say("evaluation is skipped: source.val is not set; name validation images there and rerun `deit-pipeline run`")
    return {"stage": "run", "stages": results}
