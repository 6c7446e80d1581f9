"""The schedule against timm's own, driven as the authors drive it; groups; state through safetensors."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.scheduler import CosineLRScheduler
from torch import nn

from schemas.errors import UserError
from stages.models.classifier import build
from stages.train.optim import build_optimizer, learning_rate, state_to_tensors, tensors_to_state

DEIT = {"steps_per_epoch": 1251, "epochs": 300, "warmup_epochs": 5, "peak": 1e-3, "warmup_lr": 1e-6, "min_lr": 1e-5}


def rate_at_epoch(epoch: int, **changes) -> float:
    schedule = DEIT | changes
    return learning_rate(epoch * schedule["steps_per_epoch"], **schedule)


def authors_rates(schedule: dict) -> list[float]:
    """Rate of each epoch: the authors train an epoch and then move the schedule by that epoch's number."""
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=schedule["peak"])
    cosine = CosineLRScheduler(
        sgd,
        t_initial=schedule["epochs"],
        lr_min=schedule["min_lr"],
        warmup_t=schedule["warmup_epochs"],
        warmup_lr_init=schedule["warmup_lr"],
        cycle_limit=1,
        t_in_epochs=True,
    )
    rates = []
    for epoch in range(schedule["epochs"]):
        rates.append(sgd.param_groups[0]["lr"])
        cosine.step(epoch)
    return rates


@pytest.mark.parametrize(
    "changes", [{}, {"epochs": 1000}, {"warmup_epochs": 0}, {"epochs": 3}, {"peak": 5e-6, "min_lr": 0.0}]
)
def test_the_learning_rate_is_the_authors_in_every_epoch(changes):
    schedule = DEIT | changes
    assert [rate_at_epoch(epoch, **changes) for epoch in range(schedule["epochs"])] == authors_rates(schedule)


def test_epochs_zero_and_one_both_run_at_the_warmup_rate():
    assert [rate_at_epoch(epoch) for epoch in (0, 1)] == [1e-6, 1e-6]
    assert rate_at_epoch(2) == pytest.approx(1e-6 + (1e-3 - 1e-6) / 5)
    assert rate_at_epoch(299) > 1e-5


def test_the_learning_rate_is_constant_within_an_epoch():
    first, last, next_first = (learning_rate(step, **DEIT) for step in (7 * 1251, 8 * 1251 - 1, 8 * 1251))
    assert first == last > next_first


def test_biases_norms_positions_and_the_class_token_do_not_decay_but_the_distillation_token_does():
    with torch.device("meta"):
        student = build("deit_tiny_distilled_patch16_224", num_classes=1000, img_size=224, drop_path=0.1, extra={})
    decayed, spared = build_optimizer(student, optimizer="adamw", weight_decay=0.05, fused=False).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name.removeprefix("model.") for name, parameter in student.named_parameters()}
    block = {"attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"}
    expected = {"dist_token", "patch_embed.proj.weight", "head.weight", "head_dist.weight"}
    expected |= {f"blocks.{i}.{name}" for i in range(12) for name in block}
    assert {names[id(parameter)] for parameter in decayed["params"]} == expected
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_parameters_keep_the_models_order_and_frozen_ones_stay_out():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5))
    model[1].requires_grad_(False)
    groups = build_optimizer(model, optimizer="sgd", weight_decay=0.1, fused=False).param_groups
    assert [[tuple(p.shape) for p in group["params"]] for group in groups] == [[(3, 2), (5, 4)], [(3,), (5,)]]


def test_a_bias_never_decays_whatever_its_shape():
    model = nn.ParameterDict({"weight": torch.zeros(2, 2), "bias": torch.zeros(2, 3)})
    groups = build_optimizer(model, optimizer="sgd", weight_decay=0.1, fused=False).param_groups
    assert [[tuple(p.shape) for p in group["params"]] for group in groups] == [[(2, 2)], [(2, 3)]]


def test_the_optimisers_have_the_authors_constants():
    model = nn.Linear(2, 2)
    adamw = build_optimizer(model, optimizer="adamw", weight_decay=0.05, fused=True)
    sgd = build_optimizer(model, optimizer="sgd", weight_decay=1e-4, fused=False)
    assert isinstance(adamw, torch.optim.AdamW) and isinstance(sgd, torch.optim.SGD)
    assert (adamw.defaults["betas"], adamw.defaults["eps"], adamw.defaults["fused"]) == ((0.9, 0.999), 1e-8, True)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"], sgd.defaults["fused"]) == (0.9, True, None)


def test_one_adamw_step_is_the_formula_by_hand():
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(2.0), model.bias.fill_(2.0)
    optimizer = build_optimizer(model, optimizer="adamw", weight_decay=0.5, fused=False)
    take_step(optimizer, (3 * model.weight + 3 * model.bias).sum(), rate=0.1)
    # after one step m / sqrt(v) is the gradient's sign; only the weight decays, by rate * weight_decay
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1)
    assert model.bias.item() == pytest.approx(2.0 - 0.1)


def take_step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        batch = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        take_step(optimizer, model(batch).square().mean(), rate=0.01 * (step + 1))


def fresh(kind: str, fused: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.LayerNorm(7), nn.Linear(7, 3))
    model[1].unused = nn.Linear(2, 2)  # never has a gradient, as the distillation head of an undistilled run
    return model, build_optimizer(model, optimizer=kind, weight_decay=0.05, fused=fused)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_state_through_safetensors_continues_to_bit_equal_weights(tmp_path, kind, fused):
    model, optimizer = fresh(kind, fused)
    train(model, optimizer, range(3))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    save_file(state_to_tensors(optimizer, model), tmp_path / "optimizer.safetensors")
    train(model, optimizer, range(3, 6))

    resumed, resumed_optimizer = fresh(kind, fused)
    resumed.load_state_dict(load_file(tmp_path / "model.safetensors"))
    tensors_to_state(resumed_optimizer, resumed, load_file(tmp_path / "optimizer.safetensors"))
    train(resumed, resumed_optimizer, range(3, 6))

    for (name, one), other in zip(model.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other) or "unused" in name, name
    before, after = state_to_tensors(optimizer, model), state_to_tensors(resumed_optimizer, resumed)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[path], after[path]) for path in before)


def test_state_is_named_by_parameter_and_restored_as_a_copy():
    model, optimizer = fresh("adamw", False)
    train(model, optimizer, range(1))
    tensors = state_to_tensors(optimizer, model)
    keys = ("step", "exp_avg", "exp_avg_sq")
    names = [name for name, _ in model.named_parameters() if "unused" not in name]
    assert list(tensors) == [f"{name}/{key}" for name in names for key in keys]
    other, other_optimizer = fresh("adamw", False)
    tensors_to_state(other_optimizer, other, tensors)
    kept = {path: value.clone() for path, value in tensors.items()}
    train(other, other_optimizer, range(2))
    assert all(torch.equal(tensors[path], kept[path]) for path in tensors)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("3.weight/exp_avg", (7, 3)),
        ("3.weight/step", (3, 7)),
        ("3.weight/momentum_buffer", (3, 7)),
        ("absent.weight/exp_avg", (3, 7)),
        ("frozen.weight/exp_avg", (2, 2)),
    ],
)
def test_state_of_another_model_or_optimiser_is_refused_in_one_line(path, shape):
    model, _ = fresh("adamw", False)
    model.frozen = nn.Linear(2, 2).requires_grad_(False)
    optimizer = build_optimizer(model, optimizer="adamw", weight_decay=0.05, fused=False)
    with pytest.raises(UserError, match=path) as refused:
        tensors_to_state(optimizer, model, {path: torch.zeros(shape)})
    assert "\n" not in str(refused.value)
