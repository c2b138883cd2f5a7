"""A tiny Llama, its adapter, and ten Adam steps on a fixed global batch."""

import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from paca import PacaConfig, PacaError

STEPS = 10
BATCH = 4  # sequences in the global batch, whatever the number of ranks


PACA = {"r": 4, "paca_alpha": 8, "random_seed": 0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 65,  # no multiple of the ranks: shards of unequal length
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
}


def make_base(**sizes):
    """The base model, the same on every rank."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **sizes}))


def make_model(method=PacaConfig, **options):
    """The adapted model, the same on every rank."""
    return get_peft_model(make_base(), method(**(options or PACA)))


def trained(model):
    """The parameters that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def batch(step, rank=0, ranks=1):
    """This rank's sequences of a step's global batch."""
    tokens = torch.randint(0, 64, (BATCH, 12), generator=torch.Generator().manual_seed(step))
    return tokens.chunk(ranks)[rank]


def train(model, rank=0, ranks=1, steps=STEPS, optimizer=None):
    """Adam steps; returns the loss of each."""
    optimizer = optimizer or torch.optim.Adam(trained(model), lr=1e-2)
    losses = []
    for step in range(steps):
        tokens = batch(step, rank, ranks)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def updates(model):
    """What was trained, by name, as whole tensors on the CPU."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            found[name.removeprefix("module.")] = whole.detach().clone()
    return found


def largest_difference(one, other):
    """Over all tensors of two dictionaries, which must have the same names."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def trained_alone(**options):
    """What one process gets to."""
    model = make_model(**options)
    losses = train(model)
    return updates(model), losses


def refusal(act):
    """What the refusal of a call says; None if it is not refused."""
    try:
        act()
    except PacaError as error:
        return str(error)
    return None
