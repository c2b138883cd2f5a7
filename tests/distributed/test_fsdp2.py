"""FSDP2: weights, updates and pretrained columns are sharded alike; each rank writes its own rows."""

import copy
import gc
import weakref

import pytest
import torch
from tests.distributed.launch import on_ranks
from tests.distributed.tiny import (
    adam,
    batch,
    largest_difference,
    make_model,
    train,
    trained,
    trained_alone,
    training_tolerance,
    updates,
)
from tests.toys import layers
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

import paca
from paca.tuner.layers import base

FLAVOURS = {
    "plain": {},
    "kept gathered": {"reshard_after_forward": False},
    "offload": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
}
BFLOAT16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
BLOCKS = pytest.mark.parametrize("blocks", [True, False], ids=["blocks", "root alone"])


def shard(model, blocks=True, **options):
    """As accelerate does: every block, and the rest."""
    if blocks:
        for block in model.get_base_model().model.layers:
            fully_shard(block, **options)
    return fully_shard(model, **options)


def count_beside():
    """The layers that compute an update beside their base layer, one entry per forward."""
    calls = []
    original = base.additive

    def counted(layer, *args, **kwargs):
        calls.append(layer)
        return original(layer, *args, **kwargs)

    base.additive = counted
    return calls


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def base_weights(state):
    return {name: whole(tensor) for name, tensor in state.items() if "base_layer" in name}


def outputs(model):
    with torch.no_grad():
        return model(input_ids=batch(99)).logits.float()


def moved(model):
    """Its updates are no longer zero."""
    for number, parameter in enumerate(trained(model)):
        torch.manual_seed(number)
        parameter.data.copy_(0.1 * torch.randn_like(parameter))
    return model


def trained_sharded(rank, options, blocks):
    calls = count_beside()
    model = shard(make_model(), blocks, **options)
    train(model, rank, 2)
    local = layers(model)["model.layers.0.mlp.up_proj"].base_layer.weight.to_local().shape
    return updates(model), len(calls), tuple(local)


@BLOCKS
@pytest.mark.parametrize("options", FLAVOURS.values(), ids=FLAVOURS)
def test_two_ranks_train_what_one_process_trains(options, blocks):
    alone, _ = trained_alone()
    (first, beside, local), (second, _, other) = on_ranks(trained_sharded, options, blocks)
    assert (local, other) == ((33, 32), (32, 32))  # shards of unequal length
    assert largest_difference(first, second) == 0
    assert largest_difference(first, alone) < training_tolerance()
    assert beside == 0


def trained_lean(rank, loss, recomputed):
    model = make_model()
    changed = paca.lean(model, loss=loss).changed
    if recomputed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    shard(model)
    return updates(model), train(model, rank, 2), updates(model), changed


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("loss", [True, False], ids=["loss without logits", "loss of logits"])
def test_lean_forwards_over_shards(loss, recomputed):
    alone, losses = trained_alone()
    (start, first, end, changed), (_, second, other, _) = on_ranks(trained_lean, loss, recomputed)
    assert {"LlamaMLP": 2, "LlamaRMSNorm": 5}.items() <= changed.items()
    assert ("LlamaForCausalLM" in changed) is loss
    assert largest_difference(start, end) > 1e-3
    assert largest_difference(end, other) == 0
    assert largest_difference(end, alone) < training_tolerance()
    halves = [(one + two) / 2 for one, two in zip(first, second, strict=True)]
    assert halves == pytest.approx(losses, abs=1e-4)


def train_by_halves(model, halves):
    """Ten steps, each over the given halves of its batch."""
    optimizer = adam(trained(model))
    for step in range(10):
        for number, half in enumerate(halves):
            model.set_requires_gradient_sync(number == len(halves) - 1)
            tokens = batch(step, half, 2)
            (model(input_ids=tokens, labels=tokens).loss / len(halves)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return updates(model)


def mixed(rank, ranks, options):
    model = shard(make_model(), mp_policy=BFLOAT16, **options)
    return train_by_halves(model, [rank] if ranks == 2 else [0, 1])


@pytest.mark.parametrize("options", [{}, FLAVOURS["offload"]], ids=["plain", "offload"])
def test_in_mixed_precision_too(options):
    """One process takes the ranks' halves in turn: bfloat16 rounds a whole batch in another way than its halves."""
    (alone,) = on_ranks(mixed, 1, {}, ranks=1)
    first, _ = on_ranks(mixed, 2, options)
    assert largest_difference(first, alone) < training_tolerance()
    exact, _ = trained_alone()
    assert largest_difference(first, exact) > 1e-4


def looked_at(rank, options, blocks):
    """State dicts on the way do not show the columns, nor change the training."""
    pretrained = base_weights(make_model().state_dict())
    model = shard(make_model(), blocks, **options)
    problems = []
    for step in range(3):
        train(model, rank, 2, steps=1)
        outputs(model)  # leaves weights gathered that are not resharded after forward
        full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        for kind, state in (("own", model.state_dict()), ("full", full)):
            found = base_weights(state) if state else pretrained  # the full one is rank 0's alone
            problems += [(step, kind, name) for name in found if not torch.equal(found[name], pretrained[name])]
        problems += [] if state is full or len(base_weights(model.state_dict())) == 14 else ["nothing was looked at"]
    return problems, updates(model)


@BLOCKS
@pytest.mark.parametrize("options", FLAVOURS.values(), ids=FLAVOURS)
def test_state_dicts_show_the_pretrained_weights(options, blocks):
    (problems, first), (others, _) = on_ranks(looked_at, options, blocks)
    assert problems == others == []
    model = make_model()
    for _ in range(3):
        train(model, steps=1)
    assert largest_difference(first, updates(model)) < training_tolerance()


def kept_entries(rank):
    model = shard(moved(make_model()))
    pretrained = base_weights(make_model().state_dict())
    outputs(model)
    state = model.state_dict()
    outputs(model)
    kept = base_weights(state)
    return all(torch.equal(kept[name], pretrained[name]) for name in pretrained)


def test_an_entry_of_a_state_dict_stays_pretrained():
    assert on_ranks(kept_entries) == [True, True]


def switched(rank, blocks, shown_before, options):
    """Sharded with an adapter that does something: shown, disabled, scaled, merged and unmerged."""
    model = moved(make_model())
    pretrained = base_weights(make_model().state_dict())
    plain = copy.deepcopy(model)
    if shown_before:
        outputs(model)
    model = shard(model, blocks, **options)
    differences = {}

    def compare(name):
        differences[name] = float((outputs(model) - outputs(plain)).abs().max())

    compare("adapted")
    for one in (model, plain):
        one.base_model.disable_adapter_layers()
    compare("disabled")
    for one in (model, plain):
        one.base_model.enable_adapter_layers()
    compare("enabled")
    for one in (model, plain):
        for layer in layers(one).values():
            layer.set_scale("default", 3.0)
    compare("scaled")
    for one in (model, plain):
        one.merge_adapter()
    compare("merged")
    for one in (model, plain):
        one.unmerge_adapter()
    compare("unmerged")
    state = base_weights(model.state_dict())
    return differences, all(torch.equal(state[name], pretrained[name]) for name in pretrained)


@BLOCKS
@pytest.mark.parametrize("shown_before", [False, True])
@pytest.mark.parametrize("options", [{}, FLAVOURS["kept gathered"]], ids=["plain", "kept gathered"])
def test_what_peft_can_do_with_an_adapter(blocks, shown_before, options):
    for differences, pretrained in on_ranks(switched, blocks, shown_before, options):
        assert max(differences.values()) < 1e-5, differences
        assert pretrained


def changed_before_backward(rank):
    """Gradients of a forward after whose end the updates were stepped, and those of an undisturbed one."""
    found = []
    for disturbed in (False, True):
        model = shard(moved(make_model()))
        optimizer = torch.optim.AdamW(trained(model), lr=0.1, fused=True)
        model(input_ids=batch(0), labels=batch(0)).loss.backward()
        loss = model(input_ids=batch(0), labels=batch(0)).loss
        if disturbed:
            optimizer.step()
        optimizer.zero_grad()
        loss.backward()
        found.append({name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None})
    return found


def test_backward_is_that_of_its_forward_whatever_happens_in_between():
    for undisturbed, disturbed in on_ranks(changed_before_backward):
        assert largest_difference(undisturbed, disturbed) == 0
        assert undisturbed


def originals_alive(rank):
    model = make_model()
    originals = [weakref.ref(layer.base_layer.weight) for layer in layers(model).values()]
    shard(model)
    gc.collect()
    return sum(original() is not None for original in originals)


def test_sharding_frees_the_whole_weights():
    assert on_ranks(originals_alive) == [0, 0]


def compiled(rank, sharded_first):
    model = make_model()
    calls = count_beside()
    blocks = model.get_base_model().model.layers
    model = shard(model) if sharded_first else model
    for block in blocks:
        block.compile(backend="aot_eager")
    model = model if sharded_first else shard(model)
    train(model, rank, 2)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return updates(model), len(calls), graphs


@pytest.mark.parametrize("sharded_first", [False, True])
def test_compiled_blocks(sharded_first):
    """Tracing must not put shards in place of what is gathered: the blocks' norms read them too."""
    for found, beside, graphs in on_ranks(compiled, sharded_first):
        assert largest_difference(found, trained_alone()[0]) < training_tolerance()
        assert beside == 0
        assert graphs > 0


def checkpointed(rank):
    model = make_model()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    calls = count_beside()
    model = shard(model.train())
    train(model, rank, 2)
    return updates(model), len(calls)


def test_gradient_checkpointing():
    (first, beside), _ = on_ranks(checkpointed)
    assert largest_difference(first, trained_alone()[0]) < training_tolerance()
    assert beside == 0
