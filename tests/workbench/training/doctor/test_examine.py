"""What an examination finds, and that it leaves no trace."""

import json
import random

import numpy as np
import pytest
import torch
from tests.workbench.tiny import make_tokenizer, run, write_jsonl, write_recipe
from transformers import MambaConfig, MambaForCausalLM
from transformers.models.mamba import modeling_mamba

from paca import PacaError
from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.doctor import examine, refuse_problems
from paca.workbench.training.doctor.batch_size import largest_micro_batch, set_micro_batch
from paca.workbench.training.doctor.findings import FINE, NOTE, PROBLEM, WARNING
from paca.workbench.training.doctor.rehearsal import rehearse
from paca.workbench.training.run import finetune, trainer_of


def prepared(content, tmp_path, *overrides):
    recipe = read_recipe(write_recipe(tmp_path / "recipe.yaml", content), overrides)
    return (recipe, *trainer_of(recipe))


def findings_of(content, tmp_path, *overrides):
    recipe, trainer, data = prepared(content, tmp_path, *overrides)
    return examine(trainer, recipe, tmp_path, data)


def texts(findings, level=None):
    return [finding.text for finding in findings if level in (None, finding.level)]


def assert_told(findings, level, start):
    assert any(text.startswith(start) for text in texts(findings, level)), texts(findings, level)


def state_of(trainer):
    """Everything that decides how a run goes on."""
    tensors = [*trainer.model.state_dict().values(), *(parameter.data for parameter in trainer.model.parameters())]
    return (
        [(tensor.clone(), tensor.stride()) for tensor in tensors],
        [module.training for module in trainer.model.modules()],
        torch.get_rng_state(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
        trainer.optimizer,
        trainer._total_train_tokens,
        dict(trainer._metrics["train"]),
    )


def test_an_examination_leaves_no_trace(content, tmp_path):
    _, trainer, _ = prepared(content, tmp_path)
    before = state_of(trainer)
    steps = []
    original = torch.optim.AdamW.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", lambda *args: steps.append(1) or original(*args))
        rehearsal = rehearse(trainer, tmp_path)
    assert len(steps) == 3  # it did train
    assert rehearsal.moved > 0.9
    after = state_of(trainer)
    assert len(before[0]) == len(after[0])
    for (old, stride), (new, new_stride) in zip(before[0], after[0], strict=True):
        assert torch.equal(old, new)
        assert stride == new_stride
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert torch.equal(before[2], after[2])
    assert (*before[1:2], *before[3:]) == (*after[1:2], *after[3:])
    assert not (tmp_path / ".rehearsal").exists()


@pytest.mark.parametrize("overrides", [(), ("model.dtype=bfloat16",), ("method.selection=gradient",)])
def test_a_run_is_the_same_with_and_without(content, tmp_path, overrides):
    runs = []
    for doctor in (True, False):
        folder = tmp_path / f"run-{doctor}"
        recipe = read_recipe(
            write_recipe(tmp_path / "recipe.yaml", content),
            [*overrides, f"output_dir={folder}", "training.max_steps=3"],
        )
        metrics = finetune(recipe, doctor=doctor)
        runs.append((
            (folder / "adapter" / "adapter_model.safetensors").read_bytes(),
            *(metrics[key] for key in ("before", "after", "loss_curve", "tokens")),
        ))  # fmt: skip
    assert runs[0] == runs[1]


def test_a_good_recipe(content, tmp_path):
    findings = findings_of(content, tmp_path)
    assert_told(findings, "fine", "2,048 of ")
    assert_told(findings, "fine", "a gradient reaches all 14 adapted layers")
    assert_told(findings, "fine", "100% of the trained values moved in three steps at training.learning_rate = 0.01")
    assert_told(findings, "note", "the longest batch, an evaluation and a checkpoint went well; at most about ")
    assert not texts(findings, PROBLEM)
    refuse_problems(findings)


def test_names_of_layers_that_are_not_adapted(content, tmp_path):
    content["method"].update(target_modules=["q_proj", "v_proj"], exclude_modules=["v_proj"])
    findings = findings_of(content, tmp_path)
    assert_told(findings, WARNING, "none of the layers that method.target_modules names is adapted: v_proj")
    assert any("q_proj ×2" in text for text in texts(findings, "fine"))


def chats(tmp_path, answers):
    rows = [
        {"messages": [{"role": "user", "content": "Say"}, {"role": "assistant", "content": answer}]}
        for answer in answers
    ]
    return {"train": str(write_jsonl(tmp_path / "chat.jsonl", rows)), "holdout_every": 4}


def test_answers_that_are_cut(content, tmp_path):
    content["data"] = chats(tmp_path, ["cat " * 60] * 8)
    findings = findings_of(content, tmp_path, "training.max_length=64")
    assert_told(findings, WARNING, "0 of 6 sequences teach an EOS token: the model is never taught to stop.")
    assert_told(findings, WARNING, "6 of 6 rows (100%) are cut at training.max_length = 64, 0 of them lose all")
    longest = max(prepared(content, tmp_path, "training.max_length=64")[2].counted.lengths)
    fits = -(-longest // 64) * 64
    said = f"training.max_length={fits} takes nine of ten rows whole; data.whole_rows=true leaves the longer ones out."
    assert any(text.endswith(said) for text in texts(findings, WARNING)), texts(findings, WARNING)
    whole = findings_of(content, tmp_path, "training.max_length=512")
    assert_told(whole, "fine", "6 of 6 sequences teach an EOS token")
    assert_told(whole, "fine", "no row is longer than training.max_length = 512")


def test_rows_that_are_left_out_for_their_length(content, tmp_path):
    content["data"] = {**chats(tmp_path, ["cat", "cat", "cat " * 60, "cat"] * 3), "whole_rows": True}
    findings = findings_of(content, tmp_path, "training.max_length=64")
    assert_told(findings, NOTE, "3 of 9 rows (33%) are longer than training.max_length = 64, and left out")
    assert_told(findings, FINE, "6 of 6 sequences teach an EOS token")


def test_a_rate_that_rounding_swallows(content, tmp_path):
    findings = findings_of(content, tmp_path, "model.dtype=bfloat16", "training.learning_rate=1e-6")
    assert_told(findings, WARNING, "only ")
    assert any("is lost in rounding until they have grown" in text for text in texts(findings, WARNING))
    assert_told(
        findings_of(content, tmp_path, "training.learning_rate=1e-5"), "fine", "100% of the trained values moved"
    )
    assert_told(
        findings_of(content, tmp_path, "training.learning_rate=0.0"), WARNING, "no trained value moved in three steps"
    )


@pytest.mark.road("comparisons")
@pytest.mark.parametrize("method", [{"name": "paca", "r": 4}, {"name": "lora", "r": 2, "lora_dropout": 0.1}])
@pytest.mark.parametrize(
    ("rate", "steps", "moves"), [("1e-3", 6, True), ("1e-9", 6, False), ("1e-6", 6, False), ("1e-6", 1000, True)]
)
def test_a_rate_at_which_nothing_changes(content, tmp_path, method, rate, steps, moves):
    content["method"] = {**method, "target_modules": "all-linear"}
    findings = findings_of(content, tmp_path, f"training.learning_rate={rate}", f"training.max_steps={steps}")
    told = [text for text in texts(findings, WARNING) if f"{steps:,} steps leave the model as it is" in text]
    assert told == [] if moves else len(told) == 1 and "Raise the rate." in told[0]


def test_a_loss_that_is_not_finite_is_refused(content, tmp_path):
    findings = findings_of(content, tmp_path, "training.learning_rate=1e38")
    assert_told(findings, PROBLEM, "The loss is not finite within 3 steps (")
    with pytest.raises(
        PacaError, match=r"This run would be wasted: The loss is not finite.*Lower training\.learning_rate"
    ):
        refuse_problems(findings)


def test_a_layer_that_no_gradient_reaches(content, tmp_path):
    recipe, trainer, data = prepared(content, tmp_path)
    layer = trainer.model.base_model.model.model.layers[0].mlp.up_proj
    layer.register_forward_hook(lambda module, inputs, output: output.detach())
    findings = examine(trainer, recipe, tmp_path, data)
    assert_told(
        findings, WARNING, "no gradient reached 1 of 14 adapted layers in three steps: model.layers.0.mlp.up_proj"
    )


def test_lora_is_examined_too(content, tmp_path):
    content["method"] = {"name": "lora", "r": 2, "target_modules": ["q_proj"]}
    assert_told(findings_of(content, tmp_path), "fine", "a gradient reaches all 2 adapted layers")


def test_a_batch_is_halved_until_it_fits():
    tried = []

    def attempt(size, most=2):
        tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")

    assert largest_micro_batch(8, attempt) == 2
    assert largest_micro_batch(12, attempt) == 1  # every size divides the first, so that the step stays the same
    assert tried == [8, 4, 2, 12, 6, 3, 1]
    with pytest.raises(PacaError, match="One sequence of this recipe needs needs hardly there is"):
        largest_micro_batch(4, lambda size: attempt(size, most=0))
    with pytest.raises(RuntimeError, match="something else"):
        largest_micro_batch(4, lambda size: (_ for _ in ()).throw(RuntimeError("something else")))


@pytest.fixture
def small_memory(monkeypatch):
    """A machine on which more than two sequences of a training batch do not fit."""
    from trl import SFTTrainer

    original = SFTTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training and len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)


def test_a_run_goes_on_with_a_smaller_micro_batch_and_the_same_steps(content, tmp_path, small_memory, capsys):
    content["training"]["per_device_train_batch_size"] = 4
    metrics = run(content, tmp_path)
    assert (
        "warning: out of memory with 4 sequences at once: training continues with 2 at once and 2 accumulated"
        in capsys.readouterr().err
    )
    assert metrics["steps"] == 6
    assert metrics["tokens"] == 6 * 4 * 16
    assert json.loads((tmp_path / "run" / ".micro_batch.json").read_text()) == 2
    assert metrics["recipe"]["training"]["per_device_train_batch_size"] == 4


def test_the_smaller_micro_batch_computes_the_same_step(content, tmp_path):
    """Without dropout, which is drawn for each micro-batch."""
    path = write_recipe(tmp_path / "recipe.yaml", content)
    config = tmp_path / "model"
    losses = []
    for split in (False, True):
        recipe = read_recipe(
            path, ["model.config={attention_dropout: 0.0}", "training.per_device_train_batch_size=4",
                   f"output_dir={config}-{split}"]
        )  # fmt: skip
        trainer, _ = trainer_of(recipe)
        if split:
            set_micro_batch(trainer, 1)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 6


def test_what_cannot_be_written_is_found_before_the_first_step(content, tmp_path, monkeypatch):
    recipe, trainer, data = prepared(content, tmp_path)
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(PacaError, match=r"No checkpoint can be written to .*: \[Errno 28\] No space left on device"):
        examine(trainer, recipe, tmp_path, data)
    assert not (tmp_path / ".rehearsal").exists()


@pytest.mark.road("fields")
def test_what_of_the_data_is_not_used_is_told(content, tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "reasoning_content": "hm"}]
    rows = [{"messages": turns, "images": ["a.jpg"], "id": number} for number in range(6)]
    content["data"]["train"] = str(write_jsonl(tmp_path / "a.jsonl", rows))
    findings = findings_of(content, tmp_path, "training.max_length=64")
    assert_told(findings, WARNING, "6 rows: 'images' is not used: only text is trained on; for instance ")
    assert_told(findings, WARNING, "6 rows: the chat template leaves out the thoughts of an answer; for instance ")
    assert_told(findings, NOTE, "columns that are not used: 'id'")


@pytest.mark.road("lengths")
def test_held_out_rows_that_are_cut_are_told(content, tmp_path):
    def row(letters):
        return {"messages": [{"role": "user", "content": letters}, {"role": "assistant", "content": "Ho"}]}

    rows = [row("x" * 200), *[row("x")] * 5] * 2
    content["data"]["train"] = str(write_jsonl(tmp_path / "a.jsonl", [*rows, row("x"), row("x"), row("x"), row("x")]))
    content["data"]["holdout_every"] = 3
    findings = findings_of(content, tmp_path, "training.max_length=64")
    assert_told(
        findings, WARNING, "2 of 6 held-out rows (33%) are cut at training.max_length = 64, 2 of them lose all"
    )
    assert_told(findings, FINE, "no row is longer than training.max_length = 64")


def fused(xz, conv_weight, conv_bias, x_weight, dt_weight, out_weight, *_, **__):
    """Computes with the weights of the layers around it, as mamba_ssm's kernel does, and calls none of them."""
    x, gate = xz.chunk(2, dim=1)
    rates = x_weight.sum() + dt_weight.sum() + conv_weight.sum() + conv_bias.sum()
    return torch.nn.functional.linear((x * torch.sigmoid(gate)).transpose(1, 2), out_weight) * (1 + rates)


@pytest.fixture
def state_space(content, tmp_path):
    """A recipe for a Mamba of two blocks."""
    tokenizer = make_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    sizes = {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}
    MambaForCausalLM(MambaConfig(**sizes, **ends)).save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    content["model"]["name"] = str(tmp_path / "mamba")
    content["method"] |= {"r": 2}
    return content


UNCALLED = {"torch": ["dt_proj"], "fused": ["dt_proj", "out_proj", "x_proj"]}


@pytest.mark.road("uncalled-layers")
@pytest.mark.parametrize("method", ["paca", "lora"])
@pytest.mark.parametrize("kernel", UNCALLED)
def test_layers_that_are_never_called_are_told_and_not_counted(state_space, tmp_path, monkeypatch, method, kernel):
    if kernel == "fused":
        monkeypatch.setattr("transformers.models.mamba.modeling_mamba.mamba_inner_fn", fused)
    if method == "lora":
        monkeypatch.setattr("peft.tuners.lora.model.LoraModel._check_target_module_compatiblity", lambda *_: None)
    state_space["method"] |= {"name": method, "target_modules": ["in_proj", *UNCALLED["fused"]]}
    recipe, trainer, data = prepared(state_space, tmp_path)
    findings = examine(trainer, recipe, tmp_path, data)
    names = UNCALLED[kernel]
    start = f"{2 * len(names)} of 8 adapted layers were never called in three steps (backbone.layers.0.mixer."
    assert_told(findings, WARNING, start)
    assert any(text.endswith(f"method.exclude_modules='[{', '.join(names)}]'.") for text in texts(findings, WARNING))
    values = sum(
        parameter.numel()
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad and not any(f".{uncalled}." in name for uncalled in names)
    )
    assert_told(findings, "fine", f"{values:,} of ")
    assert_told(findings, "fine", f"a gradient reaches all {8 - 2 * len(names)} adapted layers that are called")
    metrics = run(state_space, tmp_path)
    assert metrics["trained_parameters"] == values
    excluded = findings_of(state_space, tmp_path, f"method.exclude_modules={names}")
    assert not any("never called" in text for text in texts(excluded))


@pytest.mark.road("uncalled-layers")
def test_layers_that_share_their_name_with_called_ones_are_named_in_full(state_space, tmp_path, monkeypatch):
    original = modeling_mamba.mamba_inner_fn
    calls = []

    def first_only(*arguments, **options):
        calls.append(1)
        return fused(*arguments) if len(calls) % 2 else original(*arguments, **options)

    monkeypatch.setattr(modeling_mamba, "mamba_inner_fn", first_only)
    state_space["method"]["target_modules"] = ["in_proj", "out_proj"]
    told = texts(findings_of(state_space, tmp_path), WARNING)
    assert any(text.endswith("exclude_modules='[backbone.layers.0.mixer.out_proj]'.") for text in told), told


@pytest.mark.road("uncalled-layers")
def test_where_no_layer_is_called_the_run_is_refused(state_space, tmp_path):
    state_space["method"]["target_modules"] = ["dt_proj"]
    with pytest.raises(PacaError, match=r"the loss depends on none of the 2 adapted layers .*mixer\.dt_proj"):
        findings_of(state_space, tmp_path)


@pytest.mark.road("expert-exports")
@pytest.mark.parametrize(
    ("method", "told"),
    [
        ({}, None),
        ({"bias": "all"}, "biases are trained (bias='all'). `--to merged` will."),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "model.embed_tokens is a Embedding. `--to merged` will."),
    ],
)
def test_what_a_lora_can_t_hold_is_known_before_training(content, tmp_path, method, told):
    content["method"] |= method
    notes = [text for text in texts(findings_of(content, tmp_path), NOTE) if "--to lora" in text]
    assert notes == ([f"`paca export --to lora` won't take this adapter: {told}"] if told else [])
