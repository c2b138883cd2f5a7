"""What `PacaConfig(selection=…)` chooses, and what it refuses before the model is touched."""

import copy
import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.toys import Toy, adapted, config, inputs, layers, reference, train

from paca import PacaConfig, PacaError
from paca.tuner.selection import layer_seed, random_connections


def chosen(model):
    return {name: layer.paca_indices["default"].tolist() for name, layer in layers(model).items()}


def norms(plain, name):
    weight = plain.get_submodule(name).weight
    return weight.detach().square().sum(0 if isinstance(plain.get_submodule(name), torch.nn.Linear) else 1)


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize(("selection", "largest"), [("weight", True), ("weight_smallest", False)])
def test_weight_takes_the_columns_with_the_extreme_norms(kind, selection, largest):
    plain, model = adapted(kind, selection=selection)
    for name, indices in chosen(model).items():
        assert indices == sorted(norms(plain, name).topk(3, largest=largest).indices.tolist())


def test_random_is_what_it_was():
    _, model = adapted(random_seed=5)
    for name, layer in layers(model).items():
        wanted = random_connections(layer.in_features, 3, layer_seed(5, name))
        assert torch.equal(layer.paca_indices["default"], wanted)


@pytest.mark.parametrize("selection", ["random", "weight"])
def test_runs_are_contiguous_whole_and_seeded(selection):
    runs = {}
    for seed in range(8):
        _, model = adapted(selection=selection, r=4, run_length=2, random_seed=seed)
        runs[seed] = chosen(model)
        for indices in runs[seed].values():
            assert all(second == first + 1 for first, second in zip(indices[::2], indices[1::2], strict=True))
            assert all(first % 2 == 0 for first in indices[::2])
    _, again = adapted(selection=selection, r=4, run_length=2, random_seed=3)
    assert chosen(again) == runs[3]
    assert len({str(run) for run in runs.values()}) == (1 if selection == "weight" else 8)


def test_random_runs_are_all_equally_likely():
    counts = torch.zeros(5)
    for seed in range(400):
        counts[chosen(adapted(r=2, run_length=2, random_seed=seed)[1])["one"][0] // 2] += 1
    assert counts.min() > 50  # of 80 expected


def test_given_indices_are_taken_by_name_and_from_a_file(tmp_path):
    given = {"one": [4, 0, 9], "two": [1, 2, 3]}
    _, model = adapted(selection="indices", selection_indices=given)
    assert chosen(model) == {"one": [0, 4, 9], "two": [1, 2, 3]}
    path = tmp_path / "indices.json"
    path.write_text(json.dumps(given))
    _, model = adapted(selection="indices", selection_indices=str(path))
    assert chosen(model) == {"one": [0, 4, 9], "two": [1, 2, 3]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": "indices"}, r"needs the indices: pass selection_indices="),
        ({"selection_indices": {"one": [1]}}, r"but selection='random'; pass selection='indices'"),
        ({"selection": "indices", "selection_indices": {"one": [0.5]}}, r"no list of whole numbers"),
        ({"selection": "indices", "selection_indices": {}}, r"no mapping of layer names"),
        ({"run_length": 0}, r"run_length=0 is not a whole number"),
        ({"run_length": 2}, r"r=3 is no multiple of run_length=2; pass 2"),
        ({"r": 4, "run_length": 2, "rank_pattern": {"two": 3}}, r"rank_pattern\['two'\]=3 is no multiple"),
        ({"aligned": "qkv"}, r"aligned='qkv' is neither True"),
    ],
)
def test_nonsense_is_refused_at_construction(options, message):
    with pytest.raises(PacaError, match=message):
        config(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"one": [0, 1, 10], "two": [0, 1, 2]}, r"of one name 10, but the layer has the connections 0 to 9"),
        ({"one": [-1, 1, 2], "two": [0, 1, 2]}, r"of one name -1, but"),
        ({"one": [1, 1, 2], "two": [0, 1, 2]}, r"of one name 1 more than once"),
        ({"one": [1, 2], "two": [0, 1, 2]}, r"of one has 2 connections, but r=3: pass r=2"),
        ({"one": [1, 2, 3]}, r"no entry for two"),
    ],
)
def test_wrong_indices_are_refused_before_the_model_is_touched(options, message):
    model = Toy()
    with pytest.raises(PacaError, match=message):
        get_peft_model(model, config(selection="indices", selection_indices=options))
    assert not layers(model)
    assert not hasattr(model, "peft_config")


def test_all_wrong_indices_are_reported_at_once():
    with pytest.raises(PacaError, match=r"(?s)of one name 10.*of two name 12"):
        adapted(selection="indices", selection_indices={"one": [0, 1, 10], "two": [0, 1, 12]})


def test_a_layer_with_too_few_whole_runs_is_refused_or_capped():
    with pytest.raises(PacaError, match=r"r=10 does not fit one in runs of 5|r=12 does not fit one, which has 10"):
        adapted(r=12, run_length=4)
    with pytest.raises(PacaError, match=r"r=8 does not fit one in runs of 8: its 10 connections hold 1|r=16"):
        adapted(r=16, run_length=8)
    _, model = adapted(r=12, run_length=4, clamp_rank=True)
    assert {name: len(indices) for name, indices in chosen(model).items()} == {"one": 8, "two": 12}


def test_a_refused_second_adapter_leaves_the_first():
    _, model = adapted()
    before = model(inputs())
    with pytest.raises(PacaError, match="no entry for two"):
        model.add_adapter("other", config(selection="indices", selection_indices={"one": [1, 2, 3]}))
    assert torch.equal(model(inputs()), before)
    assert set(model.peft_config) == {"default"}


@pytest.mark.parametrize("options", [{"selection": "weight"}, {"r": 4, "run_length": 2}])
def test_trained_saved_and_loaded_like_any_other(options, tmp_path):
    plain, model = adapted(**options)
    train(model)
    torch.testing.assert_close(model(inputs()), reference(plain, model, inputs()), rtol=0, atol=1e-12)
    model.save_pretrained(tmp_path)
    with torch.no_grad():  # the weights' order is another one now, the stored indices are the truth
        other = copy.deepcopy(plain)
        fresh = PeftModel.from_pretrained(other, tmp_path)
    assert chosen(fresh) == chosen(model)
    torch.testing.assert_close(fresh(inputs()), model(inputs()), rtol=0, atol=1e-12)


def test_loading_asks_for_no_file_of_indices(tmp_path):
    path = tmp_path / "indices.json"
    path.write_text(json.dumps({"one": [0, 4, 9], "two": [1, 2, 3]}))
    plain, model = adapted(selection="indices", selection_indices=str(path))
    model.save_pretrained(tmp_path / "adapter")
    path.unlink()
    fresh = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    assert chosen(fresh) == chosen(model)


def test_the_config_goes_through_its_file(tmp_path):
    PacaConfig(selection="weight", run_length=2, aligned=[["q", "k"]]).save_pretrained(tmp_path)
    read = PacaConfig.from_pretrained(tmp_path)
    assert (read.selection, read.run_length, read.aligned) == ("weight", 2, [["q", "k"]])


class Attention(torch.nn.Module):
    """Three layers that read the same input, and one that does not."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (torch.nn.Linear(10, 10) for _ in range(4))

    def forward(self, x):
        return self.o_proj(torch.tanh(self.q_proj(x)) * self.k_proj(x) + self.v_proj(x))


@pytest.mark.parametrize("selection", ["random", "weight"])
def test_aligned_layers_share_their_connections(selection):
    plain = Attention()
    options = {"r": 3, "target_modules": "all-linear", "selection": selection, "random_seed": 1}
    model = get_peft_model(copy.deepcopy(plain), PacaConfig(aligned=True, **options))
    found = chosen(model)
    assert found["q_proj"] == found["k_proj"] == found["v_proj"] != found["o_proj"]
    if selection == "weight":  # the columns with the largest norm over all three
        together = sum(norms(plain, name) for name in ("q_proj", "k_proj", "v_proj"))
        assert found["q_proj"] == sorted(together.topk(3).indices.tolist())
    separate = chosen(get_peft_model(copy.deepcopy(plain), PacaConfig(**options)))
    assert separate["q_proj"] != separate["k_proj"]
    own = PacaConfig(aligned=[["k_proj", "o_proj"]], **options)
    found = chosen(get_peft_model(copy.deepcopy(plain), own))
    assert found["k_proj"] == found["o_proj"] != found["q_proj"]


def test_aligned_layers_of_several_ranks_are_refused():
    options = PacaConfig(r=3, target_modules="all-linear", aligned=True, rank_pattern={"k_proj": 2})
    with pytest.raises(PacaError, match=r"q_proj \(r=3 of 10\), k_proj \(r=2 of 10\).* cannot share an index set"):
        get_peft_model(Attention(), options)
