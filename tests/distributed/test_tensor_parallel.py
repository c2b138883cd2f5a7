"""Tensor parallelism as transformers plans it: two ranks with a part of each weight, on the same batch.

All of it is done in one launch of two ranks, whose answers the tests share: a launch costs more than the work.
"""

import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.distributed.launch import on_ranks
from tests.distributed.tiny import (
    BATCH,
    PACA,
    SIZES,
    adam,
    batch,
    largest_difference,
    make_base,
    refusal,
    train,
    trained,
    training_tolerance,
    updates,
)
from tests.toys import layers
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.distributed import DistributedConfig

from paca import PacaConfig, full_adapter_state_dict
from paca.method.columns.lease import Lease
from paca.profiling.traffic import count_traffic

# Merged into the default plan: here a layer divides its own input, or gathers its own output.
OTHER_STYLES = {
    "model.layers.*.mlp.gate_proj": "colwise_gather_output",
    "model.layers.*.mlp.up_proj": "colwise_gather_output",
    "model.layers.*.mlp.down_proj": "rowwise_split_input",
}
ATTENTION = "self_attn"  # a plan of that alone
EXPERTS = {**SIZES, "intermediate_size": 32, "num_hidden_layers": 1, "num_local_experts": 2}
WITH_HEAD = {**PACA, "target_modules": ["down_proj", "up_proj", "lm_head"]}
SELECTED = {**PACA, "selection": "weight"}


def base_model(folder, plan="auto", dtype=torch.float32):
    """Divided by a plan, or whole."""
    config = LlamaConfig.from_pretrained(f"{folder}/base")
    if plan == ATTENTION:
        config.base_model_tp_plan = {name: way for name, way in config.base_model_tp_plan.items() if plan in name}
    divided = None if plan is None else DistributedConfig(tp_plan="auto" if plan == ATTENTION else plan)
    model = LlamaForCausalLM.from_pretrained(f"{folder}/base", config=config, distributed_config=divided, dtype=dtype)
    assert hasattr(model.model.layers[0].mlp.up_proj.weight, "placements") == (plan not in (None, ATTENTION))
    return model


def adapted(folder, plan="auto", options=PACA, dtype=torch.float32):
    return get_peft_model(base_model(folder, plan, dtype), PacaConfig(**options))


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def base_weights(model):
    return {name.replace("base_layer.", ""): whole(t) for name, t in model.state_dict().items() if "paca_" not in name}


def outputs(model):
    with torch.no_grad():
        return model(input_ids=batch(99)).logits


def trained_updates(folder, plan, options=PACA, dtype=torch.float64, checkpointing=False):
    """Ten Adam steps."""
    model = adapted(folder, plan, options, dtype)
    if checkpointing:
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    train(model)
    return updates(model)


def compiled(folder, plan):
    model = adapted(folder, plan, dtype=torch.float64)
    for block in model.get_base_model().model.layers:
        block.compile(backend="eager")
    train(model)
    return updates(model)


def clipped(folder, plan):
    """Five steps whose gradients are clipped to half of their norm."""
    model = adapted(folder, plan, dtype=torch.float64)
    optimizer = adam(trained(model))
    norms = []
    for step in range(5):
        model(input_ids=batch(step), labels=batch(step)).loss.backward()
        norms.append(whole(torch.nn.utils.clip_grad_norm_(trained(model), 0.01)))
        optimizer.step()
        optimizer.zero_grad()
    return {**updates(model), "norms": torch.stack(norms)}


CASES = {
    "float32": lambda folder, plan: trained_updates(folder, plan, dtype=torch.float32),
    "float64": trained_updates,
    "head": lambda folder, plan: trained_updates(folder, plan, WITH_HEAD),
    "other styles": lambda folder, plan: trained_updates(folder, plan and OTHER_STYLES, WITH_HEAD),
    "not planned": lambda folder, plan: trained_updates(folder, plan and ATTENTION),
    "selected by weight": lambda folder, plan: trained_updates(folder, plan, SELECTED),
    "shared gathers": lambda folder, plan: trained_updates(folder, plan, {**PACA, "aligned": True}),
    "checkpointed": lambda folder, plan: trained_updates(folder, plan, checkpointing=True),
    "compiled": compiled,
    "clipped": clipped,
}


@torch.no_grad()
def moved(model):
    """Its updates are no longer zero, on any number of ranks the same."""
    for number, parameter in enumerate(trained(model)):
        generator = torch.Generator().manual_seed(number)
        values = 0.1 * torch.randn(parameter.shape, generator=generator)
        if hasattr(parameter, "full_tensor"):
            start = int(torch.distributed.get_rank() * -(-len(values) // 2))
            parameter.to_local().copy_(values[start : start + len(parameter.to_local())])
        else:
            parameter.copy_(values)
    return model


def switched(folder, plan):
    """Shown, disabled, scaled, merged and unmerged; a forward whose columns are shown again for its backward."""
    model = moved(adapted(folder, plan))
    found = {"adapted": outputs(model)}
    model.base_model.disable_adapter_layers()
    found["disabled"] = outputs(model)
    model.base_model.enable_adapter_layers()
    found["enabled"] = outputs(model)
    loss = model(input_ids=batch(0), labels=batch(0)).loss
    with model.disable_adapter():
        outputs(model)
    loss.backward()
    found.update({f"gradient {number}": whole(p.grad) for number, p in enumerate(trained(model))})
    for layer in layers(model).values():
        layer.set_scale("default", 3.0)
    found["scaled"] = outputs(model)
    model.merge_adapter(safe_merge=True)
    found["merged"] = outputs(model)
    found.update({f"merged {name}": weight for name, weight in base_weights(model).items()})
    model.unmerge_adapter()
    found["unmerged"] = outputs(model)
    model.add_adapter("other", PacaConfig(**{**PACA, "random_seed": 1}))
    model.base_model.set_adapter(["default", "other"])
    moved(model)
    found["both"] = outputs(model)
    model.delete_adapter("other")
    found["deleted"] = outputs(model)
    return found


def saved_and_loaded(rank, folder):
    """An adapter trained on divided weights, saved, and loaded into divided weights again."""
    model = adapted(folder)
    train(model, steps=2)
    state = full_adapter_state_dict(model)
    model.save_pretrained(f"{folder}/adapter", state_dict=state, is_main_process=rank == 0)
    torch.distributed.barrier()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # that of other pretrained weights
        loaded = PeftModel.from_pretrained(base_model(folder), f"{folder}/adapter", is_trainable=True)
    return updates(model), outputs(model), updates(loaded), outputs(loaded), base_weights(model)


def held(folder):
    """What a rank holds: its part of each update, and how many of a row-wise layer's connections it has."""
    model = adapted(folder)
    outputs(model)
    down = layers(model)["model.layers.0.mlp.down_proj"]
    up = layers(model)["model.layers.0.mlp.up_proj"]
    sizes = [tuple(layer.paca_delta["default"].to_local().shape) for layer in (down, up)]
    model(input_ids=batch(0), labels=batch(0)).loss.backward()
    with count_traffic() as traffic:
        torch.optim.SGD(trained(model), lr=0.1).step()
        lease = Lease()
        down.lend_for_call(lease)
    return sizes, len(lease.stays[0].held.kept[0][1]), traffic.total


def refused(folder):
    mixed = adapted(folder).eval()
    sharded = adapted(folder)
    moving = adapted(folder)
    down = layers(moving)["model.layers.0.mlp.down_proj"]
    for block in sharded.get_base_model().model.layers:
        fully_shard(block, mesh=sharded.get_base_model()._device_mesh["fsdp"])  # of one rank, for want of four
    return {
        "embedding": refusal(
            lambda: get_peft_model(
                base_model(folder, {"model.embed_tokens": "embedding_rowwise"}),
                PacaConfig(**{**PACA, "target_modules": ["embed_tokens"]}),
            )
        ),
        "experts": refusal(
            lambda: get_peft_model(
                MixtralForCausalLM.from_pretrained(
                    f"{folder}/experts", distributed_config=DistributedConfig(tp_plan="auto")
                ),
                PacaConfig(r=2, random_seed=0, target_modules=[], target_parameters=["mlp.experts.down_proj"]),
            )
        ),
        "mixed": refusal(lambda: mixed(input_ids=batch(0), adapter_names=["default", "__base__"] * (BATCH // 2))),
        "sharded": refusal(lambda: sharded(input_ids=batch(0))),
        "moving": refusal(lambda: down.move_connections("default", torch.arange(4))),
    }


def answers(rank, folder):
    return {
        **{name: case(folder, "auto") for name, case in CASES.items()},
        "switched": switched(folder, "auto"),
        "saved": saved_and_loaded(rank, folder),
        "held": held(folder),
        "refused": refused(folder),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_base().save_pretrained(folder / "base")
    MixtralForCausalLM(MixtralConfig(**EXPERTS)).save_pretrained(folder / "experts")
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return on_ranks(answers, str(folder))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_what_one_process_trains(found, folder, case):
    alone = CASES[case](folder, None)
    for answers in found:
        dtype = torch.float32 if case == "float32" else torch.float64
        assert largest_difference(answers[case], alone) < training_tolerance(dtype)
    assert min(float(update.abs().max()) for update in alone.values()) > 1e-3


def test_what_peft_can_do_with_an_adapter(found, folder):
    alone = switched(folder, None)
    for answers in found:
        assert largest_difference(answers["switched"], alone) < 1e-5
    for one, other in (("adapted", "disabled"), ("both", "unmerged"), ("both", "deleted")):
        assert float((alone[one] - alone[other]).abs().max()) > 1e-2


def test_the_adapter_is_saved_whole(found, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = PeftModel.from_pretrained(base_model(folder, None), folder / "adapter", is_trainable=True)
    for answers in found:
        expected, showed, again, showed_again, _ = answers["saved"]
        assert largest_difference(updates(loaded), expected) == 0
        assert largest_difference(again, expected) == 0
        assert torch.equal(showed, showed_again)
        assert float((outputs(loaded) - showed).abs().max()) < 1e-6


def test_base_weights_are_unchanged(found, folder):
    pretrained = base_weights(base_model(folder, None))
    for answers in found:
        weights = {name.removeprefix("base_model.model."): weight for name, weight in answers["saved"][-1].items()}
        assert largest_difference(weights, pretrained) == 0


def test_a_rank_holds_its_rows_of_each_update(found):
    (sizes, own, sent), (others, rest, _) = (answers["held"] for answers in found)
    hidden, between, r = SIZES["hidden_size"], SIZES["intermediate_size"], PACA["r"]
    assert (sizes, others) == ([(hidden // 2, r), (between // 2 + 1, r)], [(hidden // 2, r), (between // 2, r)])
    assert own + rest == r
    assert own != rest  # or the test would not show that ranks may hold different numbers of connections
    assert sent == hidden // 2 * r * 4


def test_refused(found):
    for answers in found:
        messages = answers["refused"]
        for layer in ("embedding", "experts"):
            assert "tensor parallelism (tp_plan) has planned it" in messages[layer]
            assert "nn.Linear layers that are colwise or rowwise can be adapted" in messages[layer]
            assert "load the model without tp_plan, put the adapter on, and shard with FSDP2" in messages[layer]
        assert "Pass rows with the same adapter together" in messages["mixed"]
        assert "load the model without tp_plan to shard it with FSDP2" in messages["sharded"]
        assert "Leave reselect_every out of PacaConfig" in messages["moving"]
