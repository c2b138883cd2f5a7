"""The benchmark of torch.compile measures compiled steps beside eager ones, and lean ones beside plain ones."""

import json

from compiled import llama, main

WORDS = ["--blocks", "1", "--width", "64", "--tokens", "16", "--rank", "4", "--steps", "1", "--backend", "aot_eager"]


def test_figures_of_compiled_steps_beside_eager_ones(compiler, tmp_path, capsys):
    file = tmp_path / "found.json"
    assert main([*WORDS, "--methods", "paca", "paca-lean", "lora", "--json", str(file)]) == 0
    found = json.loads(file.read_text(encoding="utf-8"))
    saved = {way: {name: row["saved_bytes"] for name, row in found[way].items()} for way in ("eager", "compiled")}
    assert saved["eager"]["paca-lean"] < saved["eager"]["paca"] < saved["eager"]["lora"]
    assert saved["compiled"]["paca"] < saved["eager"]["paca"], "compiled code computes again what is cheap"
    assert saved["compiled"]["floor"] == saved["eager"]["floor"], "it stays eager, to compare with"
    assert found["compiled"]["floor"]["step_to_floor"] == 1
    assert "| paca-lean |" in capsys.readouterr().out


def test_the_models_proportions():
    config = llama(2, 128).config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (2, 128, 341)
