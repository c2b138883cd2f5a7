"""Between calls every base weight holds its pretrained values, bit for bit: whatever the call was, however it ended.

An outsider took hold of the weights before the first call, and looks at their bits after each.
"""

import copy
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import bitsandbytes
import pytest
import torch
from peft import get_peft_model
from tests import toys
from tests.toys import held, trained
from tests.tuner.layers.every import KINDS, NORMS, adapted, differentiable
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from paca import PacaConfig, PacaLayer

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
PLAIN_KINDS = [kind for kind in KINDS if not kind.startswith("Embedding, ")]  # the others differ in gradients only
kinds = pytest.mark.parametrize("kind", PLAIN_KINDS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# Where somebody keeps the memory, no dtype is laid out in another way than the others.
dtypes_and_whether_memory_is_kept = pytest.mark.parametrize(
    ("dtype", "keeps"), [*((dtype, False) for dtype in DTYPES), (torch.float32, True)], ids=str
)


class Outsider:
    """Somebody who knows the bits of a model's base weights, and may have kept their memory too.

    Whoever keeps it has a tensor over the same memory as the weight. PaCA can tell of that, and has columns in such a
    weight during its products only; a look leaves no trace.
    """

    def __init__(self, model, keeps=False):
        self.model = model
        self.pretrained = {name: bits(weight) for name, weight in self.weights()}
        self.kept = {}
        if keeps:
            self.keep_memory()

    def weights(self):
        """The base model's own parameters by name, without touching them."""
        named = self.model.get_base_model().named_parameters()
        return [(name, weight) for name, weight in named if ".paca_" not in name]

    def keep_memory(self):
        self.kept = {name: weight.detach() for name, weight in self.weights()}

    def changed(self):
        """The weights that hold something else now."""
        found = {name for name, weight in self.weights() if not torch.equal(bits(weight), self.pretrained[name])}
        return found | {name for name, own in self.kept.items() if not torch.equal(bits(own), self.pretrained[name])}

    def assert_pretrained(self):
        assert not self.changed()


def bits(weight):
    return held(weight).view(torch.uint8)


class StoppedError(Exception):
    pass


def stop(*_):
    raise StoppedError


def inference(model, x, outsider):
    with torch.no_grad():
        model(*x)
        outsider.assert_pretrained()
        model.eval()(*x)
    model.train()


def inference_mode(model, x, outsider):
    with torch.inference_mode():
        model(*x)
        outsider.assert_pretrained()


def dropped_graph(model, x, outsider):
    model(*x)
    outsider.assert_pretrained()
    y = model.eval()(*x)
    model.train()
    del y


def backward(model, x, outsider):
    y = model(*x)
    if outsider.kept:
        outsider.assert_pretrained()
    y.square().sum().backward()
    outsider.assert_pretrained()  # the loss is still there
    model.zero_grad()


def backward_to_the_input(model, x, outsider):
    """Nothing is trained, as in the layers below the first adapter's, or when a prompt is optimized."""
    frozen = trained(model)
    for parameter in frozen:
        parameter.requires_grad_(False)
    leaves = [part.clone().requires_grad_() if part.is_floating_point() else part for part in x]
    y = model(*leaves)
    if y.requires_grad:  # not over token ids
        y.square().sum().backward()
    outsider.assert_pretrained()
    for parameter in frozen:
        parameter.requires_grad_()


def two_forwards(model, x, outsider):
    with torch.no_grad():
        model(*x)
    one, other = model(*x), model(*x)
    with torch.no_grad():
        model(*x)
    (one.square().sum() + other.sum()).backward()
    outsider.assert_pretrained()


def one_of_two_graphs(model, x, outsider):
    one, other = model(*x), model(*x)
    one.square().sum().backward()
    del other
    outsider.assert_pretrained()


def retained_graph(model, x, outsider):
    y = model(*x).square().sum()
    for _ in range(2):
        y.backward(retain_graph=True)
        outsider.assert_pretrained()
    y.backward()
    outsider.assert_pretrained()
    y = model(*x).square().sum()
    torch.autograd.grad(y, trained(model), retain_graph=True)
    outsider.assert_pretrained()


def checkpointed(model, x, outsider):
    y = checkpoint(model, *x, use_reentrant=False)
    y.square().sum().backward()
    outsider.assert_pretrained()


def checkpointed_reentrant(model, x, outsider):
    zero = torch.zeros((), dtype=y_dtype(model), requires_grad=True)
    y = checkpoint(lambda zero, *x: model(*x) + zero, zero, *x, use_reentrant=True)
    outsider.assert_pretrained()  # its forward makes no graph
    y.square().sum().backward()
    outsider.assert_pretrained()


def y_dtype(model):
    return model.get_base_model().head.weight.dtype


def exception(model, x, outsider):
    for grad in (True, False):
        handle = model.get_base_model().head.register_forward_pre_hook(stop)
        with torch.set_grad_enabled(grad), pytest.raises(StoppedError) as caught:
            model(*x)
        outsider.assert_pretrained()
        assert caught.value.__traceback__ is not None  # and with it all frames of the forward
        handle.remove()


def exception_in_a_base_layer(model, x, outsider):
    for where in ("register_forward_pre_hook", "register_forward_hook"):
        for grad in (True, False):
            handles = [getattr(base, where)(stop) for base in base_layers(model)]
            with torch.set_grad_enabled(grad), pytest.raises(StoppedError) as caught:
                model(*x)
            outsider.assert_pretrained()
            assert caught.value.__traceback__ is not None
            for handle in handles:
                handle.remove()


def exception_in_a_layer_alone(model, x, outsider):
    """Not in a call of the whole model, which has a lease of its own. With gradients the traceback keeps the graph."""
    for where in ("register_forward_pre_hook", "register_forward_hook"):
        handles = [getattr(base, where)(stop) for base in base_layers(model)]
        with torch.no_grad(), pytest.raises(StoppedError) as caught:
            model.get_base_model()(*x)
        outsider.assert_pretrained()
        assert caught.value.__traceback__ is not None
        for handle in handles:
            handle.remove()


def wrong_input(model, x, outsider):
    """The product itself raises: for complex numbers, or tokens that the table doesn't have."""
    wrong = [part.to(torch.complex64) if part.is_floating_point() else part + 100 for part in x]
    for forward, grad in ((model, True), (model, False), (model.get_base_model(), False)):
        with torch.set_grad_enabled(grad), pytest.raises((RuntimeError, IndexError)) as caught:
            forward(*wrong)
        outsider.assert_pretrained()
        assert caught.value.__traceback__ is not None


def exception_in_backward(model, x, outsider):
    y = model(*x)
    y.register_hook(stop)
    with pytest.raises(StoppedError):
        y.square().sum().backward()
    del y
    outsider.assert_pretrained()


def base_layers(model):
    found = (module.get_base_layer() for module in model.modules() if isinstance(module, PacaLayer))
    return {id(base): base for base in found}.values()


def autocast(model, x, outsider):
    with torch.autocast("cpu", torch.bfloat16):
        y = model(*x)
        with torch.no_grad():
            model(*x)
    y.float().square().sum().backward()
    outsider.assert_pretrained()


def disabled(model, x, outsider):
    policy = model(*x)
    with model.disable_adapter():
        outsider.assert_pretrained()
        model(*x)
        outsider.assert_pretrained()
        with torch.no_grad():
            model(*x)
        outsider.assert_pretrained()
    policy.square().sum().backward()
    outsider.assert_pretrained()


def several_adapters(model, x, outsider):
    if "other" not in model.peft_config:
        options = model.peft_config["default"].to_dict() | {"random_seed": 3, "r": 2}
        model.add_adapter("other", PacaConfig(**options), autocast_adapter_dtype=False)
    kept = []
    for active in ("other", ["default", "other"], "default"):
        model.base_model.set_adapter(active)
        with torch.no_grad():
            model(*x)
        if not kept:
            outsider.assert_pretrained()
        kept.append(model(*x))
    for y in kept:
        y.square().sum().backward()
    outsider.assert_pretrained()


def merged_and_unmerged(model, x, outsider):
    model.merge_adapter()
    model(*x).square().sum().backward()
    model.unmerge_adapter()
    outsider.assert_pretrained()


def base_model_alone(model, x, outsider):
    """A call that PeftModel has no part in."""
    forward = model.get_base_model()
    with torch.no_grad():
        forward(*x)
    outsider.assert_pretrained()
    forward(*x)
    outsider.assert_pretrained()
    y = forward(*x)
    y.square().sum().backward()
    outsider.assert_pretrained()


CALLS = {
    call.__name__.replace("_", " "): call
    for call in (
        *(inference, inference_mode, dropped_graph, backward, backward_to_the_input, two_forwards, one_of_two_graphs),
        *(retained_graph, checkpointed, checkpointed_reentrant, exception, exception_in_a_base_layer),
        *(exception_in_a_layer_alone, wrong_input, exception_in_backward, autocast, disabled, several_adapters),
        *(merged_and_unmerged, base_model_alone),
    )
}


@kinds
@dtypes_and_whether_memory_is_kept
@pytest.mark.parametrize("call", CALLS)
def test_after_a_call_every_bit_is_the_pretrained_one(call, kind, dtype, keeps):
    _, model = adapted(kind, dtype)
    outsider = Outsider(model, keeps)
    for _ in range(2):
        CALLS[call](model, differentiable(kind, dtype), outsider)
        outsider.assert_pretrained()
        outsider.keep_memory()


OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, foreach=False),
    "AdamW foreach": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, foreach=True),
    "AdamW fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "AdamW 8-bit": lambda parameters: bitsandbytes.optim.AdamW8bit(parameters, lr=0.1, min_8bit_size=8),
}


@kinds
@dtypes_and_whether_memory_is_kept
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_in_training_every_bit_is_the_pretrained_one(optimizer, kind, dtype, keeps):
    _, model = adapted(kind, dtype)
    outsider, x = Outsider(model, keeps), differentiable(kind, dtype)
    optimizer = OPTIMIZERS[optimizer](trained(model))
    for _ in range(2):
        loss = model(*x).square().mean()
        loss.backward()
        outsider.assert_pretrained()
        optimizer.step()
        outsider.assert_pretrained()
        optimizer.zero_grad()
        with torch.no_grad():
            model.eval()(*x)
        model.train()
        outsider.assert_pretrained()


# That the checks can fail


@kinds
@dtypes_and_whether_memory_is_kept
def test_during_a_call_the_outsider_finds_the_columns(kind, dtype, keeps):
    _, model = adapted(kind, dtype)
    outsider, found = Outsider(model, keeps), []
    for base in base_layers(model):
        base.register_forward_pre_hook(lambda *_: found.append(outsider.changed()))
    with torch.no_grad():
        model(*differentiable(kind, dtype))
    assert found
    assert all(found) != (keeps and kind in NORMS)  # a norm runs over a copy of its weight where others have it too
    outsider.assert_pretrained()


@pytest.mark.parametrize("kind", [kind for kind in PLAIN_KINDS if kind not in ("Embedding", *NORMS)])
@dtypes
def test_until_backward_whoever_looks_finds_the_columns(kind, dtype):
    """Unless somebody keeps the memory: then they are out. An embedding's backward needs no table, a norm's a copy."""
    _, model = adapted(kind, dtype)
    outsider = Outsider(model)
    y = model(*differentiable(kind, dtype))
    assert outsider.changed()
    y.square().sum().backward()
    outsider.assert_pretrained()


# Graphs that end late


@pytest.fixture
def collecting():
    """Have the garbage collector run all the time, over what the test makes alone."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@kinds
@pytest.mark.usefixtures("collecting")
def test_a_graph_in_a_reference_cycle_ends_when_the_cycle_is_collected(kind):
    _, model = adapted(kind)
    outsider = Outsider(model)
    cycle = [model(*differentiable(kind))]
    cycle.append(cycle)
    del cycle
    gc.collect()
    outsider.assert_pretrained()


@kinds
def test_a_graph_that_outlives_its_model(kind):
    plain, model = adapted(kind)
    y = model(*differentiable(kind))
    base = model.unload()
    del model
    for _ in range(2):
        for before, now in zip(plain.parameters(), base.parameters(), strict=True):
            assert torch.equal(bits(now), bits(before))
        if y is not None:
            y.square().sum().backward()
        y = None


def test_the_collector_ends_leases_wherever_it_runs(collecting):
    """In the middle of writing, too: every graph here is part of a cycle."""
    plain, model = toys.adapted()
    outsider, kept = Outsider(model), []
    for step in range(30):
        cycle = [model(toys.inputs())]
        cycle.append(cycle)
        torch.testing.assert_close(cycle[0], toys.reference(plain, model, toys.inputs()), rtol=0, atol=1e-12)
        with torch.no_grad():
            for delta in trained(model):
                delta.add_(0.1)  # no two forwards share their columns
        kept = [cycle, *kept][: step % 4]
        del cycle
    kept.clear()
    gc.collect()
    outsider.assert_pretrained()


# Threads


def requests(model, x, threads=8, each=50):
    """Outputs of requests from many threads, all of which begin at once."""
    ready = threading.Barrier(threads)

    def serve(_):
        ready.wait(timeout=60)
        with torch.no_grad():
            return [model(*x) for _ in range(each)]

    with ThreadPoolExecutor(threads) as pool:
        return [y for served in pool.map(serve, range(threads)) for y in served]


@pytest.mark.parametrize(
    ("kind", "dtype", "keeps"),
    [
        *((kind, torch.float32, False) for kind in PLAIN_KINDS),
        *(("Linear", dtype, False) for dtype in DTYPES if dtype != torch.float32),
        *((kind, torch.float32, True) for kind in ("Linear", "Conv2d", "Embedding", "MultiheadAttention", "experts")),
    ],
    ids=str,
)
def test_fifty_requests_from_each_of_eight_threads(kind, dtype, keeps):
    _, model = adapted(kind, dtype)
    x, twin = differentiable(kind, dtype), copy.deepcopy(model)
    with torch.no_grad():
        wanted = twin.eval()(*x)
    outsider = Outsider(model.eval(), keeps)
    outputs = requests(model, x)
    outsider.assert_pretrained()
    assert len(outputs) == 400
    for y in outputs:
        torch.testing.assert_close(y, wanted)


def test_first_requests_that_write_many_columns_at_once():
    """Wide layers, so that writing takes long enough for threads to meet in it."""
    for seed in range(5):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(1024, 1024))
        x = (torch.randn(2, 1024),)
        model = get_peft_model(net, PacaConfig(r=8, target_modules=["0"], init_weights=False)).eval()
        with torch.no_grad():
            wanted = copy.deepcopy(model)(*x)
        outsider = Outsider(model)
        for y in requests(model, x, each=2):
            torch.testing.assert_close(y, wanted)
        outsider.assert_pretrained()


class Elsewhere:
    """Another thread in the middle of a call without gradients: in the first layer, its columns in the weight."""

    def __init__(self, model):
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.call, args=(model,), daemon=True)
        self.output = None
        toys.layers(model)["one"].base_layer.register_forward_pre_hook(self.pause)
        self.thread.start()
        assert self.inside.wait(timeout=60)

    def call(self, model):
        with torch.no_grad():
            self.output = model(toys.inputs())

    def pause(self, *_):
        if threading.current_thread() is self.thread:
            self.inside.set()
            assert self.go_on.wait(timeout=60)

    def finish(self):
        self.go_on.set()
        self.thread.join(timeout=60)
        return self.output


def raises(model):
    handle = model.get_base_model().head.register_forward_pre_hook(stop)
    with pytest.raises(StoppedError) as caught:
        model(toys.inputs())
    handle.remove()
    return caught  # and with it the graph


def retains_a_graph(model):
    y = model(toys.inputs()).square().sum()
    y.backward(retain_graph=True)
    return y


def trains_another_adapter(model):
    layer = toys.layers(model)["one"]
    layer.paca_delta["other"].requires_grad_(True)
    y = layer.compute(layer.updates(["other"]), toys.inputs())
    y.square().sum().backward()


def evaluates_the_pretrained_layer(model):
    toys.layers(model)["one"].eval().compute((), toys.inputs())


@pytest.mark.parametrize(
    "act",
    [raises, retains_a_graph, trains_another_adapter, evaluates_the_pretrained_layer],
    ids=lambda act: act.__name__,
)
@pytest.mark.parametrize("after_training", [False, True])
def test_no_thread_takes_the_columns_from_under_the_call_of_another(after_training, act):
    """They shared one lease, and an exception in one call ended it for both; or one moved the weight's memory."""
    plain, model = toys.adapted()
    model.add_adapter("other", toys.config(random_seed=1))
    outsider = Outsider(model)
    if after_training:
        toys.train(model)
    elsewhere = Elsewhere(model)
    if act in (raises, retains_a_graph):
        with torch.no_grad():
            model(toys.inputs())
    kept = act(model)
    output = elsewhere.finish()
    torch.testing.assert_close(output, toys.reference(plain, model, toys.inputs()), rtol=0, atol=1e-12)
    outsider.assert_pretrained()
    del kept
    outsider.assert_pretrained()


# Generation


def llama(dtype):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    net = LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=64, **shape)).to(dtype)
    options = PacaConfig(r=3, target_modules="all-linear", init_weights=False, task_type="CAUSAL_LM", random_seed=0)
    return get_peft_model(net, options).eval()


PROMPT = torch.arange(1, 7).reshape(2, 3)


def new_tokens(model, **options):
    return model.generate(PROMPT, max_new_tokens=5, do_sample=False, pad_token_id=0, **options)


@dtypes_and_whether_memory_is_kept
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"use_cache": False}], ids=str)
def test_generation(options, dtype, keeps):
    model = llama(dtype)
    outsider, found = Outsider(model, keeps), []
    new_tokens(model, **options)
    outsider.assert_pretrained()
    with pytest.raises(StoppedError) as caught:
        new_tokens(model, logits_processor=[stop], **options)
    outsider.assert_pretrained()
    assert caught.value.__traceback__ is not None
    with model.disable_adapter():
        new_tokens(model, **options)
        outsider.assert_pretrained()

    def look(_, scores):
        found.append(outsider.changed())
        return scores

    new_tokens(model, logits_processor=[look], **options)
    assert len(found) == 5
    assert all(found) is not keeps  # between its forwards too, for the call is `generate` as a whole
    outsider.assert_pretrained()


# Compiled


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("kind", ["Linear", "Conv2d", "Embedding", "MultiheadAttention"])
def test_compiled_code(kind):
    _, model = adapted(kind, torch.float32)
    outsider, x = Outsider(model), differentiable(kind, torch.float32)
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.AdamW(trained(model), lr=0.1)
    for _ in range(2):
        y = compiled(*x)
        outsider.assert_pretrained()  # its columns are in during products only
        y.square().mean().backward()
        outsider.assert_pretrained()
        optimizer.step()
        with torch.no_grad():
            compiled(*x)
        outsider.assert_pretrained()
