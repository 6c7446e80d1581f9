"""The run file: one TOML file with everything a run depends on.

Unknown keys, wrong types and impossible values are refused in one line that names the key and what
it allows. Defaults are DeiT's. A key exists only if something acts on it.
"""

import math
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from schemas.recipe import Recipe, Table
from schemas.values import (
    AUTO,
    Arguments,
    Cadence,
    Checkpoint,
    Checkpoints,
    FolderName,
    LocalPath,
    Names,
    NonEmptyNames,
    NoneOrFolderName,
    Precision,
    Sizes,
    Switch,
    Tables,
    Trackers,
    Workers,
)

_MOST_VALIDATIONS = 60
"""Of a training whose `validate_every` is "auto", not counting the one at its end."""
_PROCESSES = 2


class SourceConfig(Table):
    """Where the images come from."""

    train: str = Field(
        "",
        description="folder, tar, Parquet or {0000..1023}.tar: docs/sources.md",
        examples=["imagenet/train"],
    )
    val: str = Field("", description="validation split, in any of these forms", examples=["imagenet/val"])
    val_labels: str = Field(
        "",
        description="classes of validation images that lie flat: the devkit, or Kaggle's LOC_val_solution.csv",
        examples=["ILSVRC2012_devkit_t12.tar.gz"],
    )
    classes: LocalPath = Field(
        "",
        description='order of the classes: "" = sorted names; "numeric" = names that are numbers, by number; '
        'a file of names, one a line; "imagenet-1k" = its 1,000 synsets',
    )
    check_md5: bool = Field(False, description="compare the official archives with their published md5 sums first")


class ShardsConfig(Table):
    """How images are packed."""

    samples_per_shard: int = Field(1000, ge=2, le=1_000_000, description="images in one tar")
    seed: int = Field(0, ge=0, lt=2**32, description="shuffles the source over the shards")
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail", description="an unreadable image stops the stage, or is left out and listed in the manifest"
    )
    max_side: int = Field(
        0, ge=0, le=65_500, description="longer images are re-encoded as JPEG with this longer side; 0 = never"
    )
    adopt: bool = Field(False, description="index the WebDataset tars of the source where they lie and copy nothing")

    @model_validator(mode="after")
    def _bytes_stay(self) -> "ShardsConfig":
        if self.adopt and self.max_side:
            raise ValueError("adopt: copies nothing, so max_side cannot re-encode; set one of them")
        return self


class Member(NamedTuple):
    """One classifier of a teacher: model, checkpoint, extra and input size as in the run file."""

    model: str
    checkpoint: str
    extra: dict[str, Any]
    input_size: int


def members(model: str | tuple[str, ...], checkpoint: Any, extra: Any, input_size: Any = 0) -> tuple[Member, ...]:
    """The classifiers that the keys of a table name; one where model is no list."""
    if isinstance(model, str):
        return (Member(model, checkpoint, extra, input_size),)
    lists = (one if isinstance(one, tuple) else (one,) * len(model) for one in (checkpoint, extra, input_size))
    return tuple(map(Member, model, *lists))


def refuse_unlike(table: str, model: str | tuple[str, ...], *, checkpoint: Any, **others: Any) -> None:
    """Raise ValueError where a table's keys about its models are lists of different lengths."""
    count = len(model) if isinstance(model, tuple) else 1
    for key, value in {"checkpoint": checkpoint, **others}.items():
        if isinstance(value, tuple) and (len(value) != count or isinstance(model, str)):
            raise ValueError(f"{key}: a list needs a list of as many models in {table}.model")
    if checkpoint and isinstance(checkpoint, str) and isinstance(model, tuple):
        raise ValueError('checkpoint: must be a list, one for each model; "" = timm\'s pretrained')


class TeacherConfig(Table):
    """The network whose decisions are stored."""

    model: NonEmptyNames = Field(
        "regnety_160.deit_in1k",
        description="any timm classifier, name the weights' tag; or a list, whose softmaxes are averaged",
    )
    checkpoint: Checkpoints = Field(
        "",
        description='weights: "" = timm\'s pretrained; a .safetensors or .pth file; or "run:NAME" of this workspace; '
        "a list for a list of models",
    )
    extra: Tables = Field({}, description="further arguments of timm.create_model; a list for a list of models")
    input_size: Sizes = Field(
        0,
        description="views are resized to this side for the network; 0 = only if its weights fit no other than their "
        "own; a list for a list of models",
    )
    precision: Precision = Field(
        "auto", description="of its forward pass; bf16 and fp16 by autocast; auto = fp16 on a GPU, fp32 on a CPU"
    )
    batch_size: int = Field(
        256, ge=2, le=65536, description="mixed views in one forward pass; even; halved where memory does not suffice"
    )
    compile: Switch = Field(
        AUTO, description="run the model through torch.compile; auto = on a GPU, where there are views enough to pay"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "TeacherConfig":
        if self.batch_size % 2:
            raise ValueError("batch_size: must be even: the two views of a pair go through the teacher together")
        refuse_unlike("teacher", self.model, checkpoint=self.checkpoint, extra=self.extra, input_size=self.input_size)
        return self

    @property
    def members(self) -> tuple["Member", ...]:
        """The classifiers of the mixture; one where it is none."""
        return members(self.model, self.checkpoint, self.extra, self.input_size)

    @property
    def title(self) -> str:
        """What people call it."""
        return " + ".join(member.model for member in self.members)

    def identity(self) -> dict[str, Any]:
        """The part of a teacher's identity in the run file; its weights are the rest."""
        return {
            "model": self.model,
            "extra": self.extra,
            "input_size": self.input_size,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "compile": self.compile,
        }


class LabelsConfig(Table):
    """Which decisions are made and how they are kept."""

    name: FolderName = Field("teacher", description="folder of the label set below labels/")
    views: int = Field(300, ge=1, le=65535, description="views of each sample to label; may be raised later")
    store: Literal["hard", "topk", "full", "compact", "sampled"] = Field(
        "hard",
        description="hard = the teacher's class; topk = also its k largest logits; full = also all logits; "
        "compact = as topk, rounded to half the bytes; sampled = also classes drawn by their probability",
    )
    topk: int = Field(
        10, ge=1, le=1000, description="logits of a view that topk and compact keep, normalised for train.tau"
    )
    samples: int = Field(50, ge=1, le=1000, description="classes of a view that sampled draws, at train.tau")
    workers: Workers = Field(
        AUTO,
        description="data processes of each teacher; 0 = in the teacher's own; auto = the machine's cores dealt over "
        "its GPUs, 2 on a CPU",
    )
    passes_per_part: int = Field(10, ge=1, le=1000, description="passes of one shard in one unit of work")

    @property
    def processes(self) -> int:
        """`workers` as a number; 2 where no command has replaced "auto" by what suits its devices."""
        return _PROCESSES if self.workers == AUTO else int(self.workers)


class StudentConfig(Table):
    """The network that is trained."""

    model: str = Field("deit_base_distilled_patch16_224", min_length=1, description="any timm classifier")
    img_size: int = Field(0, ge=0, description="input size; 0 = views.image_size")
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth of the last block, linear over depth")
    drop_rate: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="dropout: in a transformer after the positions and in every block, elsewhere before the classifier",
    )
    init_checkpoint: Checkpoint = Field("", description="weights to start from, as teacher.checkpoint")
    new_head: bool = Field(False, description="begin with fresh heads: init_checkpoint knows other classes")
    extra: Arguments = Field({}, description="further arguments of timm.create_model")

    @model_validator(mode="after")
    def _something_to_keep(self) -> "StudentConfig":
        if self.new_head and not self.init_checkpoint:
            raise ValueError("new_head: without student.init_checkpoint all weights are fresh; set one or remove it")
        return self


class TrainConfig(Table):
    """How the student is trained."""

    name: FolderName = Field("deit", description="folder of the run below runs/")
    epochs: int = Field(300, ge=1, description="an epoch is as many views as there are samples")
    max_steps: int = Field(0, ge=0, description="stop after this many steps of the schedule; 0 = all of it")
    batch_size: int = Field(1024, ge=2, description="global batch, whatever the number of workers")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd has Nesterov momentum .9")
    lr: float = Field(5e-4, gt=0, description="peak learning rate")
    scale_lr: bool = Field(True, description="lr is for 512 views and is scaled by batch_size / 512; false = as it is")
    warmup_lr: float = Field(1e-6, ge=0, description="learning rate at the first step")
    min_lr: float = Field(1e-5, ge=0, description="learning rate at the end of the cosine")
    warmup_epochs: int = Field(5, ge=0, description="linear warm-up, inside the cosine")
    weight_decay: float = Field(0.05, ge=0, description="not on biases, norms, class token and positional embedding")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="of the true class; never of the teacher's")
    ema_decay: float = Field(
        0.99996, ge=0, lt=1, description="moving average of the weights, kept beside them; 0 = off"
    )
    distillation: Literal["none", "hard", "soft", "label"] = Field(
        "hard",
        description="what the distillation head learns (a single head: learns too): hard = the teacher's class; soft = "
        "its probabilities, stored as topk or full; label = the truth, as section 4's control",
    )
    tau: float = Field(1.0, gt=0, le=100, description="temperature of soft; 1 = the authors' code, 3 = the paper")
    soft_reduction: Literal["authors", "paper"] = Field(
        "authors", description="of soft: mean over views and classes, K times smaller; or mean over views"
    )
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the teacher's term; the class term has 1 - alpha")
    min_margin: float = Field(
        0.0,
        ge=0,
        description="of hard: the teacher's largest logit less the second, below which a view's true label takes the "
        "decision's place; 0 = every decision is learned",
    )
    reuse_views: bool = Field(False, description="begin again with view 0 where more views are needed than labelled")
    follow: bool = Field(False, description="start before all passes are labelled, and wait for those to come")
    precision: Precision = Field(
        "auto",
        description="of the forward pass; bf16 and fp16 by autocast, fp16 with scaled gradients; auto = bf16 on a GPU, "
        "fp32 on a CPU",
    )
    compile: Switch = Field(
        AUTO, description="run the model through torch.compile; auto = on a GPU, where there are steps enough to pay"
    )
    deterministic: bool = Field(
        False, description="the same bits again on a GPU too, by deterministic algorithms, which are slower"
    )
    workers: Workers = Field(
        AUTO,
        description="data processes of each training worker; 0 = in the trainer itself; auto = the machine's cores "
        "dealt over its GPUs, 2 on a CPU",
    )
    micro_batch: int = Field(
        0, ge=0, description="views in one forward pass, a worker's others accumulate; 0 = all at once"
    )
    window: int = Field(16, ge=1, le=100_000, description="shards whose pairs are shuffled together")
    checkpoint_every: int = Field(0, ge=0, description="steps between checkpoints; 0 = every epoch")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints to keep")
    log_every: int = Field(50, ge=1, description="steps between two lines of metrics.jsonl")
    trackers: Trackers = Field(
        (),
        description="also send the metrics to these: tensorboard, wandb, mlflow, trackio; [tracking] says where to",
    )
    tensorboard: bool = Field(False, description='the same as "tensorboard" in trackers')
    validate_every: Cadence = Field(
        AUTO,
        description="epochs between validations on the val split; 0 = never; auto = every epoch of up to 60, 60 times "
        "in longer trainings; the last step is validated too",
    )
    validate_images: int = Field(
        5000, ge=0, description="images of a validation, spread evenly; the last one takes the whole split too; 0 = all"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="initial weights, order of the stream, stochastic depth")

    @model_validator(mode="after")
    def _even(self) -> "TrainConfig":
        if self.micro_batch % 2:
            raise ValueError("micro_batch: must be even: the two views of a pair go through the student together")
        if self.min_margin and self.distillation != "hard":
            raise ValueError('min_margin: selects decisions, which only distillation = "hard" learns; set it to 0')
        return self

    @property
    def untrained_heads(self) -> tuple[str, ...]:
        """Those of a distilled student's heads, "class" and "distillation", that no term of the loss reaches."""
        if self.distillation == "none" or self.alpha == 0:
            return ("distillation",)
        return ("class",) if self.alpha == 1 else ()

    @property
    def all_trackers(self) -> tuple[str, ...]:
        """`trackers`, and TensorBoard where `tensorboard` says so, each once."""
        return tuple(dict.fromkeys((*self.trackers, *(("tensorboard",) if self.tensorboard else ()))))

    @property
    def processes(self) -> int:
        """`workers` as a number; 2 where no command has replaced "auto" by what suits its devices."""
        return _PROCESSES if self.workers == AUTO else int(self.workers)

    @property
    def epochs_between_validations(self) -> int:
        """`validate_every` as a number; 0 = never."""
        every = self.validate_every
        return math.ceil(self.epochs / _MOST_VALIDATIONS) if every == AUTO else int(every)


class TrackingConfig(Table):
    """Where the trackers of `train.trackers` keep a run; keys and passwords are their libraries' own concern."""

    project: str = Field(
        "deit-pipeline", pattern=r"^[A-Za-z0-9_.-]+$", description="project of W&B and Trackio, experiment of MLflow"
    )
    offline: bool = Field(
        False, description="W&B: reach no server, write below runs/<run>/wandb, for `wandb sync`; as WANDB_MODE=offline"
    )
    wandb_entity: str = Field("", description='user or team at W&B; "" = the library\'s default')
    mlflow_uri: str = Field(
        "",
        description='server or database of MLflow; "" = MLFLOW_TRACKING_URI, else mlflow.db in the workspace',
        examples=["http://localhost:5000"],
    )
    trackio_space: str = Field(
        "", description='Space of Hugging Face for Trackio; "" = TRACKIO_SPACE_ID, else a local database'
    )


class CacheConfig(Table):
    """Local copies: of shards, where these are across a network, and of decoded pixels, where these are wanted."""

    folder: LocalPath = Field("", description='"" = deit-pipeline/shards in the user\'s cache folder')
    gigabytes: float = Field(50.0, gt=0, description="the most it may take, shared by all processes of a machine")
    decoded: bool = Field(False, description="keep decoded images on a local disk, so that later epochs decode nothing")
    decoded_folder: LocalPath = Field("", description='"" = deit-pipeline/decoded in the user\'s cache folder')
    decoded_gigabytes: float = Field(
        200.0, gt=0, description="the most decoded images may take; those beyond it are decoded in every epoch"
    )


class EvaluateConfig(Table):
    """What is measured, on which images, and how."""

    crop_pct: float = Field(0.875, gt=0, le=1, description="the centre crop's share of the resized short side")
    image_size: int = Field(0, ge=0, description="side of the crop; 0 = the run's own, or a model's usual one")
    batch_size: int = Field(256, ge=1, description="images in one forward pass")
    weights: Literal["model", "ema", "best"] = Field(
        "model",
        description="the trained weights, their moving average, or of all validated the ones with the highest top-1",
    )
    model: Names = Field(
        "", description='any timm classifier, or a list of them, in place of the run; "" = the run of train.name'
    )
    checkpoint: Checkpoints = Field("", description="weights of evaluate.model, as teacher.checkpoint")
    extra: Tables = Field({}, description="further arguments of timm.create_model; a list for a list of models")
    source: str = Field("", description='images, in any form source.train may have; "" = the val split')
    source_labels: str = Field("", description="classes of a source whose images lie flat, as source.val_labels")
    class_folders: Literal["names", "indices"] = Field(
        "names", description="what the class folders of evaluate.source are called; indices = ImageNet-V2's 0 to 999"
    )
    labels: Literal["source", "imagenet-real"] = Field(
        "source", description="the images' own classes, or ImageNet-Real's for the official validation images"
    )
    baseline: NoneOrFolderName = Field("", description="--disagreement: a run of a student that no teacher taught")
    max_batch: int = Field(0, ge=0, description="--throughput: largest batch to try; 0 = until memory ends")
    runs: int = Field(30, ge=1, le=100_000, description="--throughput: timed forward passes")
    precision: Precision = Field(
        "auto", description="--throughput: auto = bf16 on a GPU, fp32 on a CPU; accuracy is measured in strict fp32"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "EvaluateConfig":
        refuse_unlike("evaluate", self.model, checkpoint=self.checkpoint, extra=self.extra)
        if not self.source and (self.source_labels or self.class_folders == "indices"):
            key = "source_labels" if self.source_labels else "class_folders"
            raise ValueError(f"{key}: is of evaluate.source, which is not set; the val split has its own classes")
        if (self.checkpoint or self.extra) and not self.model:
            raise ValueError("model: evaluate.checkpoint and evaluate.extra need it; name the timm model they are of")
        return self

    @property
    def members(self) -> tuple["Member", ...]:
        """The models to measure in place of the run; none where it is the run."""
        return members(self.model, self.checkpoint, self.extra) if self.model else ()


class ClusterConfig(Table):
    """Where the work runs."""

    address: str = Field(
        "local",
        min_length=1,
        description='"local" = an embedded Ray; "auto" or a host = an existing cluster; "inline" = no Ray',
    )
    devices: int = Field(
        0, ge=0, description="training workers and teachers at once; 0 = one for each GPU, or one CPU worker"
    )
    cpus: int = Field(0, ge=0, description="processes that shard; 0 = all cores")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = cuda where there is one")
    attempts: int = Field(3, ge=1, le=100, description="tries of one part before it counts as failed")
    retry_failed: bool = Field(False, description="also try parts again that failed in all attempts of a command")
    grace_seconds: float = Field(
        60.0, ge=0, le=86_400, description="given to what is under way when the command is stopped"
    )


class RunFile(Table):
    """The complete run file."""

    workspace: str = Field(
        "runs/deit",
        min_length=1,
        description="a path, or any URI pyarrow.fs opens",
        examples=["s3://bucket/deit"],
    )
    source: SourceConfig = SourceConfig()
    shards: ShardsConfig = ShardsConfig()
    views: Recipe = Recipe()
    teacher: TeacherConfig = TeacherConfig()
    labels: LabelsConfig = LabelsConfig()
    student: StudentConfig = StudentConfig()
    train: TrainConfig = TrainConfig()
    tracking: TrackingConfig = TrackingConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    cache: CacheConfig = CacheConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the student takes."""
        return self.student.img_size or self.views.image_size

    @model_validator(mode="after")
    def _fits_together(self) -> "RunFile":
        if self.labels.views % self.views.repeats:
            raise ValueError(
                f"labels.views: {self.labels.views} is not a multiple of views.repeats = {self.views.repeats}"
            )
        if self.train.distillation == "soft" and self.labels.store == "hard":
            raise ValueError(
                'train.distillation: soft learns the teacher\'s probabilities; set labels.store = "compact", "topk" or '
                '"full"'
            )
        if self.train.min_margin and self.labels.store in ("hard", "sampled"):
            raise ValueError(
                f'train.min_margin: labels.store = "{self.labels.store}" keeps no margins; set it to "compact", "topk" '
                'or "full"'
            )
        return self
