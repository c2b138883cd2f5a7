"""A tiny Llama, its adapter, and ten Adam steps on a fixed global batch."""

import torch
from peft import get_peft_model
from tests.toys import rounding
from transformers import LlamaConfig, LlamaForCausalLM

from paca import PacaConfig, PacaError

STEPS = 10
RATE = 1e-2
BATCH = 4  # sequences in the global batch, whatever the number of ranks
LENGTH = 12  # tokens in a sequence


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
    tokens = torch.randint(0, 64, (BATCH, LENGTH), generator=torch.Generator().manual_seed(step))
    return tokens.chunk(ranks)[rank]


def adam(parameters):
    """Adam that divides no gradient by less than 1e-4, a tenth of their usual size.

    One that happens to be near zero is nothing but rounding, and Adam's usual 1e-8 would make a whole step of it.
    """
    return torch.optim.Adam(parameters, lr=RATE, eps=1e-4)


def training_tolerance(dtype=torch.float32, widest=SIZES["intermediate_size"]):
    """How far apart updates may end whose gradients, sums over tokens and features, are summed in another order."""
    return STEPS * RATE * rounding(dtype, BATCH * LENGTH, widest)


def train(model, rank=0, ranks=1, steps=STEPS, optimizer=None):
    """Adam steps; returns the loss of each."""
    optimizer = optimizer or adam(trained(model))
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
