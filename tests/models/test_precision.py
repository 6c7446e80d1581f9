"""Precision: what "auto" comes to on which device, what stays as it was begun, and torch's switches put back."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from pipeline.commands import run as stages
from pipeline.execution import devices
from pipeline.execution.devices import compiled, data_processes, device_line, settled
from schemas.presets import PRESETS
from stages.models import flops
from stages.models.classifier import build
from stages.models.flops import forward_flops, peak_flops
from stages.models.precision import Precision, deterministic_algorithms
from stages.storage.run_files import stored_run
from stages.train.plan import plan_training
from stages.train.trainer import Trainer
from tests.support.stored import edit_state
from tests.support.world import run_file, silent


@pytest.fixture
def gpus(monkeypatch):
    """A machine of 16 cores and two GPUs, of which nothing is used."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(devices, "cores", lambda: 16)
    monkeypatch.setattr(devices, "_can_compile", lambda: True)


def test_every_preset_computes_in_half_precision_on_a_gpu_and_in_fp32_on_a_cpu(gpus, monkeypatch, tmp_path):
    for preset in PRESETS.values():
        run = preset.run_file().model_copy(update={"workspace": str(tmp_path)})
        found = settled(run)
        assert (found.train.precision, found.teacher.precision) == ("bf16", "fp16")
        assert (found.train.workers, found.labels.workers) == (7, 7)  # 16 cores, two GPUs, a core for each trainer
        long = compiled(found, steps=375_300, views=10**8)
        assert long.train.compile is True and long.teacher.compile is True
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = compiled(settled(run), steps=375_300, views=10**8)
    assert (found.train.precision, found.teacher.precision, found.train.workers) == ("fp32", "fp32", 2)
    assert (found.train.compile, found.teacher.compile) == (False, False)


def test_what_is_named_stays_as_it_is_named(gpus, fresh):
    named = {"train": {"precision": "fp16", "workers": 3, "compile": False}, "labels": {"workers": 0}}
    run = fresh(named, {"teacher": {"precision": "tf32", "compile": True}, "cluster": {"device": "auto"}})
    found = compiled(settled(run), steps=1, views=1)
    assert (found.train.precision, found.train.workers, found.train.compile) == ("fp16", 3, False)
    assert (found.teacher.precision, found.teacher.compile, found.labels.workers) == ("tf32", True, 0)


def test_short_runs_and_machines_without_a_compiler_are_not_compiled(gpus, fresh, monkeypatch):
    run = settled(fresh({"cluster": {"device": "auto"}}))
    assert compiled(run, steps=100, views=1000).train.compile is False
    monkeypatch.setattr(devices, "_can_compile", lambda: False)
    assert compiled(run, steps=10**6, views=10**9).train.compile is False


def test_labels_and_runs_that_were_begun_in_fp32_are_resumed_in_fp32_on_a_gpu(gpus, copied):
    run = copied({"cluster": {"device": "auto"}})
    assert (settled(run).train.precision, settled(run).teacher.precision) == ("fp32", "fp32")
    other = copied({"cluster": {"device": "auto"}, "train": {"name": "other"}, "labels": {"name": "other"}})
    assert (settled(other).train.precision, settled(other).teacher.precision) == ("bf16", "fp16")
    assert compiled(run, steps=1, views=10**9).teacher.compile is False  # as the label set's plan says


def test_no_plan_no_manifest_and_no_stored_run_file_names_auto_for_what_is_settled(whole):
    files = [file for name in ("plan.json", "manifest.json") for file in Path(whole.workspace).rglob(name)]
    assert len(files) > 6 and not any('"auto"' in json.dumps(json.loads(file.read_text())) for file in files)
    stored = [stored_run(whole, name) for name in ("teacher", "student")]
    settings = [(one.train.precision, one.train.compile, one.train.workers, one.teacher.precision) for one in stored]
    assert settings == [("fp32", False, 0, "fp32")] * 2


def on_a_gpu(fields):
    fields["made_from"]["teacher"] |= {"precision": "fp16", "compile": True, "device": "cuda"}


def test_labels_made_on_a_gpu_are_trained_on_where_there_is_none(copied):
    run = copied({"train": {"name": "new", "max_steps": 1}})
    for name in ("plan.json", "manifest.json"):
        edit_state(Path(run.workspace, "labels/teacher", name), on_a_gpu)
    assert stages.train(run, silent)["steps"] == 1


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([{"CPU": 32.0, "GPU": 4.0}, {"CPU": 64.0, "GPU": 4.0}], 7),  # of the node with fewest
        ([{"CPU": 16.0}], 1),
        ([{"CPU": 2.0, "GPU": 8.0}], 1),
    ],
)
def test_data_processes_of_a_clusters_gpus_are_dealt_by_its_poorest_node(gpus, fresh, monkeypatch, nodes, expected):
    class Session:
        def __enter__(self):
            return SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": one} for one in nodes])

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(devices, "ray_session", lambda cluster: Session())
    run = fresh({"cluster": {"device": "cuda", "address": "auto", "devices": 8}})
    assert data_processes(run) == expected


def test_cores_are_those_of_the_affinity_and_of_the_containers_quota(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(devices, "_CGROUP_QUOTA", tmp_path / "cpu.max")
    assert devices.cores() == 64
    for text, expected in (("800000 100000\n", 8), ("max 100000\n", 64), ("50000 100000\n", 1)):
        (tmp_path / "cpu.max").write_text(text)
        assert devices.cores() == expected


def test_the_line_at_the_start_says_device_precision_compile_batch_and_workers(gpus, fresh):
    run = fresh({"cluster": {"device": "auto", "address": "local"}})
    line = device_line(run, "student x", precision="bf16", compiled=True, batch="batch 1024", workers=7)
    assert line == "student x on 2 x cuda (NVIDIA H100 80GB HBM3): bf16, compiled, batch 1024, 7 data processes each"


def switches() -> tuple[bool, ...]:
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("fp32", {}, (False, False, False, False)),
        ("tf32", {"search": True}, (True, True, True, False)),
        ("bf16", {"search": True, "deterministic": True}, (True, True, False, True)),
    ],
)
def test_switches_are_set_for_a_pass_on_a_gpu_and_put_back(name, options, expected):
    before = switches()
    precision = Precision(name, torch.device("cuda"), "train.precision")
    with pytest.raises(KeyError), precision.switches(**options):
        assert switches() == expected
        raise KeyError
    assert switches() == before
    with Precision("fp32", torch.device("cpu"), "train.precision").switches(search=True):
        assert switches() == before


def test_tf32_on_a_cpu_is_refused(refused, copied):
    line = refused(stages.train, copied({"train": {"name": "new", "precision": "tf32"}}), silent)
    assert line == 'train.precision = "tf32": is a format of NVIDIA GPUs; set it to "fp32" or "auto" on a CPU'


def test_deterministic_algorithms_are_on_for_a_training_and_off_after_it():
    with pytest.raises(KeyError), deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with deterministic_algorithms(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_of_an_earlier_version_is_the_same_run_with_deterministic_algorithms(copied):
    assert stages.train(copied({"train": {"deterministic": True}}), silent)["resumed_from_step"] == 12


def test_fp16_scales_its_gradients_and_a_resumed_run_has_the_bits_of_an_undisturbed_one(copied, images):
    half = {"precision": "fp16", "max_steps": 6, "checkpoint_every": 3}
    one, two = ({"train": {"name": name, **half}} for name in ("one", "two"))
    run = copied(one)
    stages.train(run, silent)
    changed = [run_file(run.workspace, images, two, {"train": {"max_steps": steps}}) for steps in (3, 6)]
    assert [stages.train(each, silent)["resumed_from_step"] for each in changed] == [0, 3]
    undisturbed, resumed = (load_file(Path(run.workspace, f"runs/{name}/model.safetensors")) for name in ("one", "two"))
    assert all(torch.equal(value, resumed[name]) for name, value in undisturbed.items())
    state = load_file(Path(run.workspace, "runs/one/checkpoints/step-000000006/state.safetensors"))
    assert state["scaler/scale"] > 1 and state["scaler/_growth_tracker"] > 0


def test_model_flops_count_attention_and_leave_the_mode_alone():
    student = build("deit_small_distilled_patch16_224", num_classes=1000, img_size=224, drop_path=0.0, extra={})
    student.train()
    assert forward_flops(student, 224, torch.device("cpu")) == pytest.approx(2 * 4.62e9, rel=0.01)  # Table 5's GMACs
    assert student.training


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 311.9e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L40S", 362.1e12),
        ("Tesla T4", 65e12),
        ("NVIDIA Unheard Of", None),
    ],
)
def test_the_peak_is_the_cards_and_unknown_cards_have_none(monkeypatch, card, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: card)
    assert peak_flops(torch.device("cuda")) == peak
    assert peak_flops(torch.device("cpu")) is None


def test_metrics_say_the_utilisation_where_the_peak_is_known(copied, monkeypatch):
    monkeypatch.setattr("stages.train.trainer.peak_flops", lambda device: 1e12)
    run = copied({"train": {"name": "known", "max_steps": 4}})
    stages.train(run, silent)
    lines = [json.loads(one) for one in Path(run.workspace, "runs/known/metrics.jsonl").read_text().splitlines()]
    trainer = Trainer(run, plan_training(run, 1), rank=0, world=1, device=torch.device("cpu"))
    view = flops.TRAINING * forward_flops(trainer.classifier, 32, torch.device("cpu"))
    assert lines and all(one["mfu"] == pytest.approx(one["views_per_second"] * view / 1e12, abs=1e-4) for one in lines)
