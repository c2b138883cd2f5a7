"""What `--methods` and `--rates` may say."""

import pytest

from paca.errors import PacaError
from paca.workbench.compare.choice import choose_methods
from paca.workbench.compare.rates import grid, rates_of, read_rates
from paca.workbench.methods.catalogue import METHODS, AdapterSetting


def test_the_floor_comes_first_and_nothing_twice():
    assert [chosen.label for chosen in choose_methods("paca, lora,paca")] == ["frozen", "frozen-lean", "paca", "lora"]


def test_methods_of_peft_go_by_name_and_by_config_class_with_arguments():
    chosen = choose_methods("lora(r=8,use_rslora=true),VeraConfig(r=64),ia3")
    assert [found.label for found in chosen[2:]] == ["lora(r=8,use_rslora=true)", "VeraConfig(r=64)", "ia3"]
    configs = [
        found.method.config(AdapterSetting(16, "all-linear", 1, found.setting.arguments)) for found in chosen[2:]
    ]
    assert [type(config).__name__ for config in configs] == ["LoraConfig", "VeraConfig", "IA3Config"]
    assert (configs[0].r, configs[0].lora_alpha, configs[0].use_rslora) == (8, 8, True)
    assert configs[1].r == 64
    assert configs[2].target_modules == "all-linear"


def test_an_argument_may_be_a_list_or_a_mapping():
    text = "paca(r=4,rank_pattern={q_proj: 8, up_proj: 2}),lora(target_modules=[q_proj, v_proj],r=2)"
    paca, lora = choose_methods(text)[2:]
    assert paca.setting.arguments == {"r": 4, "rank_pattern": {"q_proj": 8, "up_proj": 2}}
    assert lora.setting.arguments == {"target_modules": ["q_proj", "v_proj"], "r": 2}
    assert f"{paca.label},{lora.label}" == text
    assert read_rates([f"{paca.label}=5e-3"], [paca.label, lora.label]) == {paca.label: [5e-3]}


RANKS = {  # 16 where nothing else is said
    "paca": 16,
    "paca(r=144)": 144,
    "paca(r=144,paca_alpha=8)": 144,
    "lora(r=3)": 3,
    "dora(r=5)": 5,
    "lora-fa(r=7)": 7,
    "qpaca(r=9)": 9,
    "miss(r=8)": 8,
    "VeraConfig(r=64)": 64,
    "adalora(total_step=9)": 12,
    "adalora(total_step=9,init_r=6)": 6,
    "oft(oft_block_size=32,r=0)": None,
    "oft(r=4,oft_block_size=0)": 4,
    "ia3": None,
    "boft": None,
    "full": None,
    "frozen,lora": None,
}


@pytest.mark.road("comparisons")
@pytest.mark.parametrize("words", RANKS)
def test_the_rank_is_that_which_the_arguments_give(words):
    floor, _, *others = choose_methods(words)
    assert floor.rank is None
    chosen = others[0] if words != "frozen,lora" else floor
    assert chosen.rank == chosen.identity()["rank"] == RANKS[words]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paca,lorra", "'lorra': neither paca nor PEFT has such a method; did you mean 'lora'?"),
        ("moslra", "did you mean 'moslora'?"),
        ("zzzzz", "; known: frozen, frozen-lean, paca, lora,"),
        ("lora(rr=8)", "lora: rr = 8: there is no such key; did you mean"),
        ("lora(r=many)", "lora: r = 'many': expected int, got str"),
        ("lora(8)", "lora(8): '8' is not key=value; write for example r=8"),
        ("full(r=8)", "full takes no arguments, got r"),
        ("lora(r=8", "can't read 'lora(r=8'; write names separated by commas"),
        (" ", "names nothing to compare; for example --methods paca,lora"),
        ("frozen", "names nothing to compare"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_to_type(text, message):
    with pytest.raises(PacaError) as error:
        choose_methods(text)
    assert message in str(error.value)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(PacaError) as error:
        choose_methods("lorra,pacca,lora(rr=8)")
    assert all(word in str(error.value) for word in ("'lorra'", "'pacca'", "rr = 8"))


def test_every_method_has_a_description_and_makes_its_config():
    for method in METHODS.values():
        config = method.config(AdapterSetting(rank=4))
        assert method.description
        assert (config is None) == (method.peft is None)
        assert config is None or config.r == 4


def test_rates_are_read_and_made():
    assert read_rates(["paca=5e-3", "lora=2e-3,1e-3"], ["paca", "lora"]) == {"paca": [5e-3], "lora": [1e-3, 2e-3]}
    assert grid(2e-3, 3) == [1e-3, 2e-3, 4e-3]
    assert grid(2e-3, 4) == [1e-3, 2e-3, 4e-3, 8e-3]
    [*_, lora] = choose_methods("lora")
    assert rates_of(lora, {"lora": [7.0]}, 3, None) == [7.0]
    assert rates_of(lora, {}, 0, 1e-5) == [1e-5]
    assert rates_of(lora, {}, 0, None) == [lora.method.rate]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lora"], "'lora' is not METHOD=RATE"),
        (["lora=x"], "'lora=x' is not METHOD=RATE"),
        (["lora=-1"], "'lora=-1' is not METHOD=RATE"),
        (["lroa=1e-3"], "'lroa' is not compared; did you mean 'lora'?"),
        (
            ["lora=1e-3,2e-3", "paca=1e-3,2e-3,3e-3"],
            "got numbers of rates that differ: lora 2, paca 3",
        ),
    ],
)
def test_rates_that_make_no_sense_are_refused(words, message):
    with pytest.raises(PacaError) as error:
        read_rates(words, ["paca", "lora"])
    assert message in str(error.value)
