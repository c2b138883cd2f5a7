"""`training.optim: muon`: what is stepped by which rule, over checkpoints, in runs, plans and comparisons."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.toys import tiny_llama_config, trained
from tests.workbench.tiny import write_recipe
from torch import nn
from transformers import LlamaForCausalLM

from paca import PacaConfig, PacaError
from paca.workbench.cli.main import main
from paca.workbench.compare.choice import choose_methods
from paca.workbench.compare.workload import Workload
from paca.workbench.methods.muon import Muon, adapter_matrices
from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.run import finetune

IDS = torch.arange(12)[None] + 3


def adapted(config=None):
    torch.manual_seed(0)
    config = config or PacaConfig(
        r=4, target_modules=["q_proj", "down_proj"], random_seed=0, modules_to_save=["norm", "lm_head"]
    )
    return get_peft_model(LlamaForCausalLM(tiny_llama_config()), config)


def groups(model, decay=0.0):
    return [{"params": trained(model), "weight_decay": decay}]


def steps(model, *optimizers, count=3):
    for _ in range(count):
        model(input_ids=IDS, labels=IDS).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in trained(model)]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_matrices_take_torchs_muon_and_the_rest_adamw(decay):
    one, other = adapted(), adapted()
    found = steps(one, Muon(groups(one, decay), one, lr=0.01, betas=(0.8, 0.9), eps=1e-6))
    matrices = adapter_matrices(other)
    assert [parameter.shape[1] for parameter in matrices] == [4] * 4
    rest = [parameter for parameter in trained(other) if all(parameter is not matrix for matrix in matrices)]
    assert len(rest) == 6, "a head, and all that PEFT takes for norm"
    expected = steps(
        other,
        torch.optim.Muon(matrices, lr=0.01, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.01, weight_decay=decay, betas=(0.8, 0.9), eps=1e-6),
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(found[0], trained(adapted())[0])


def test_what_are_the_matrices_of_an_adapter():
    lora = adapted(LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert {tuple(parameter.shape) for parameter in adapter_matrices(lora)} == {(2, 64), (64, 2)}
    plain = LlamaForCausalLM(tiny_llama_config())
    outside = {"model.embed_tokens.weight", "lm_head.weight"}
    names = {id(parameter): name for name, parameter in plain.named_parameters() if parameter.dim() == 2}
    assert {names[id(parameter)] for parameter in adapter_matrices(plain)} == set(names.values()) - outside


def test_it_goes_on_from_its_state_and_follows_a_schedule():
    whole = adapted()
    expected = steps(whole, Muon(groups(whole), whole, lr=0.01), count=4)
    model = adapted()
    first = Muon(groups(model), model, lr=0.01)
    steps(model, first, count=2)
    state = copy.deepcopy(first.state_dict())
    assert {len(of) for of in state["state"].values()} == {1, 3}, "one moment; AdamW's two and its count"
    second = Muon(groups(model), model, lr=0.5)
    second.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(steps(model, second, count=2), expected, strict=True))
    for group in second.param_groups:
        group["lr"] = 0.0
    before = [parameter.detach().clone() for parameter in trained(model)]
    assert all(torch.equal(a, b) for a, b in zip(steps(model, second), before, strict=True))


def test_a_closure_is_called_and_its_loss_returned():
    model = adapted()
    optimizer = Muon(groups(model), model)

    def closure():
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    assert optimizer.state


def test_an_adapter_without_matrices_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    model = get_peft_model(net, PacaConfig(r=2, target_modules=["0"], modules_to_save=["2"]))
    with pytest.raises(PacaError, match="steps matrices, and this adapter has none: updates of convolutions"):
        Muon(groups(model), model)


def test_sharded_matrices_are_refused(monkeypatch):
    monkeypatch.setattr("paca.workbench.methods.muon.DTensor", nn.Parameter)
    model = adapted()
    with pytest.raises(PacaError, match=r"needs whole matrices, which no rank has.*ddp\.yaml"):
        Muon(groups(model), model)


def test_a_run_learns_and_is_resumed_to_the_same_adapter(content, tmp_path):
    content["training"]["optim"] = "muon"

    def run(folder, *overrides, **flags):
        recipe = read_recipe(
            write_recipe(tmp_path / "r.yaml", content), [f"output_dir={tmp_path / folder}", *overrides]
        )
        metrics = finetune(recipe, **flags)
        return metrics, (tmp_path / folder / "adapter" / "adapter_model.safetensors").read_bytes()

    metrics, whole = run("muon")
    assert metrics["after"]["loss"] < metrics["before"]["loss"]
    assert metrics["recipe"]["training"]["optim"] == "muon"
    assert whole != run("adamw", "training.optim=adamw_torch")[1]
    for name in ("checkpoint-6", "adapter", "metrics.json"):  # as if it had been killed after its first checkpoint
        path = tmp_path / "muon" / name
        path.rename(tmp_path / f"away-{name}")
    assert run("muon", resume=True)[1] == whole


def test_a_comparison_and_a_plan_step_with_it(content, tmp_path, capsys):
    content["training"]["optim"] = "muon"
    file = write_recipe(tmp_path / "recipe.yaml", content)
    entries = choose_methods("paca,lora,full")
    workload = Workload(read_recipe(file))
    for entry in entries[2:]:
        assert isinstance(workload.trainer(entry, 0).create_optimizer(), Muon)

    def planned(*words):
        assert main(["plan", str(file), "--json", *words]) == 0
        (row,) = json.loads(capsys.readouterr().out)["methods"]
        return row

    muon, adamw = planned(), planned("--optimizer", "adamw_torch_fused")
    assert muon["trained"] == adamw["trained"]
    assert 0 < 2 * muon["by_category"]["optimizer"] <= adamw["by_category"]["optimizer"]
    assert muon["operations"]["optimizer"] > adamw["operations"]["optimizer"]


def test_what_does_nothing(content, tmp_path):
    content["training"] |= {"optim": "muon", "optim_args": "momentum=0.5"}
    file = write_recipe(tmp_path / "recipe.yaml", content)
    with pytest.raises(PacaError, match=r"training\.optim_args = 'momentum=0.5' does nothing with muon; leave it out"):
        read_recipe(file)
