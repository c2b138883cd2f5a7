"""Exports of a trained adapter: what lies there, that it agrees, and that what does not agree is not left."""

import importlib.util
import json

import pytest
import torch
from peft import PeftModel
from tests.workbench import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from paca import PacaError
from paca.profiling import track
from paca.workbench.cli.main import main
from paca.workbench.export import verified as exporting
from paca.workbench.export.verified import export

RECIPE = "content"
INPUTS = torch.arange(3, 15)[None]
has_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def adapted(run, **options):
    recipe = json.loads((run / "metrics.json").read_text())["recipe"]
    base = AutoModelForCausalLM.from_pretrained(recipe["model"]["name"], **options)
    return PeftModel.from_pretrained(base, run / "adapter").eval()


def test_every_format_through_the_command(run, content, capsys):
    folder = run()
    expected = adapted(folder)(INPUTS).logits
    for to in ("merged", "lora", "peft"):
        assert main(["export", str(folder), "--to", to]) == 0
        said = capsys.readouterr().out
        assert "verified: logits differ by" in said
        assert f"{to}: {folder / to} (" in said
        certificate = json.loads((folder / to / "certificate.json").read_text())
        assert all(check["passed"] for check in certificate["checks"])
        assert certificate["effect_of_the_adapter"] > 1e-3
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    torch.testing.assert_close(merged(INPUTS).logits, expected, rtol=1e-6, atol=1e-6)
    base = AutoModelForCausalLM.from_pretrained(content["model"]["name"])
    for to in ("lora", "peft"):
        again = PeftModel.from_pretrained(base, folder / to).eval()
        torch.testing.assert_close(again(INPUTS).logits, expected, rtol=1e-5, atol=1e-5)
        base = again.unload()


def test_a_merged_model_is_written_in_shards_and_brings_its_tokenizer(run):
    folder = run()
    done = export(str(folder), "merged", max_shard_size="20KB")
    assert sum(name.startswith("model-0") for name in done["files"]) > 2
    assert {"generation_config.json", "tokenizer.json", "model.safetensors.index.json"} <= set(done["files"])
    names = [check["name"] for check in done["checks"]]
    assert names[:2] == ["logits", "tensors"]
    assert {"vocabulary", "tied", "end_of_sequence", "tokens", "chat_template", "parameters"} <= set(names)
    assert done["checks"][0]["found"] == 0
    assert AutoTokenizer.from_pretrained(folder / "merged").eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("method", "quantization"),
    [("lora", "null"), ("moslora", "null"), pytest.param("lora", "nf4", marks=has_bitsandbytes)],
)
def test_adapters_of_other_methods_are_merged_too(run, content, method, quantization):
    """The update is added to what is dequantized: PEFT's own merge would quantize the sum and lose most of it."""
    content["method"] = {"name": method, "r": 2, "target_modules": "all-linear"}
    done = export(str(run(f"model.quantization={quantization}")), "merged")
    assert done["effect_of_the_adapter"] > 1e-3
    assert all(check["passed"] for check in done["checks"])


@has_bitsandbytes
@pytest.mark.parametrize("size", ["5GB", "4KB"])
def test_a_quantized_model_is_dequantized_shard_by_shard(run, size):
    folder = run("model.quantization=nf4")
    done = export(str(folder), "merged", max_shard_size=size)
    assert ("model.safetensors" in done["files"]) == (size == "5GB")
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    assert not hasattr(merged.config, "quantization_config")
    lora = export(str(folder), "lora")
    assert lora["checks"][0]["passed"]


@has_bitsandbytes
def test_dequantizing_holds_one_shard_at_a_time(run, tmp_path):
    from paca.tuner.export.merged import write_merged
    from paca.workbench.training.adapted import find_adapter, load_adapted

    model, _ = load_adapted(find_adapter(str(run("model.quantization=nf4"))))
    (tmp_path / "out").mkdir()
    with track(model) as tracker:
        held = tracker.live_bytes
        write_merged(model, tmp_path / "out", "20KB")
        assert tracker.peak_bytes > held
    files = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    assert len(files) > 3
    # The tracker counts tensors on the meta device, too: 2 layers of 9,216 weights that are yet to be made.
    assert tracker.peak_bytes - held - 2 * 9216 * 4 <= max(files) < sum(files) / 3


@pytest.mark.parametrize("to", ["merged", "lora", "peft"])
def test_what_answers_otherwise_is_not_left(run, capsys, monkeypatch, to):
    folder = run()
    hidden = set(folder.glob(".*"))
    target = exporting.FORMATS[to]

    def write_and_spoil(exported, place):
        from safetensors.torch import load_file, save_file

        target.write(exported, place)
        (file,) = place.glob("*.safetensors")
        tensors = load_file(file)
        key = next(name for name in tensors if name.endswith(("down_proj.weight", "lora_B.weight", "paca_delta")))
        tensors[key][0, 0] += 1.0
        save_file(tensors, file, metadata={"format": "pt"})

    spoiling = exporting.Format(write_and_spoil, target.check)
    monkeypatch.setitem(exporting.FORMATS, to, spoiling)
    assert main(["export", str(folder), "--to", to]) == 2
    assert "does not agree with the adapted model, so nothing was left:\n  - logits: " in capsys.readouterr().err
    assert not (folder / to).exists()
    assert set(folder.glob(".*")) == hidden


def test_lost_end_marks_and_vocabulary_are_found(run, capsys, monkeypatch):
    folder = run()
    target = exporting.FORMATS["merged"]

    def write_and_spoil(exported, place):
        target.write(exported, place)
        path = place / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 5}))

    monkeypatch.setitem(exporting.FORMATS, "merged", exporting.Format(write_and_spoil, target.check))
    assert main(["export", str(folder), "--to", "merged"]) == 2
    assert "  - end_of_sequence: " in capsys.readouterr().err


def test_a_head_that_was_trained_apart_from_the_embeddings_is_no_longer_tied(tmp_path, content):
    base = AutoModelForCausalLM.from_pretrained(content["model"]["name"], tie_word_embeddings=True)
    base.tie_weights()
    base.save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(content["model"]["name"]).save_pretrained(tmp_path / "tied")
    content["model"]["name"] = str(tmp_path / "tied")
    content["method"].update(target_modules=["q_proj"], modules_to_save=["lm_head"])
    tiny.run(content, tmp_path)
    done = export(str(tmp_path / "run"), "merged")
    assert done["checks"][0]["found"] < 1e-6
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "merged")
    assert not merged.config.tie_word_embeddings
    assert not torch.equal(merged.lm_head.weight, merged.model.embed_tokens.weight)


def test_where_an_export_goes(run, tmp_path):
    folder = run()
    export(str(folder / "adapter"), "peft", str(tmp_path / "there"))
    with pytest.raises(PacaError, match="holds an earlier export; add --overwrite to replace it"):
        export(str(folder), "peft", str(tmp_path / "there"))
    export(str(folder), "peft", str(tmp_path / "there"), overwrite=True)
    with pytest.raises(PacaError, match=r"holds files that no export wrote \(.*\); name a new"):
        export(str(folder), "peft", str(folder / "adapter"), overwrite=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: (a / "adapter_config.json").write_text("{"), "is not valid JSON"),
        (lambda a: (a / "adapter_config.json").write_text("[1]"), "does not name its base model"),
        (lambda a: (a / "adapter_config.json").write_text("[" * 100_000), "is not valid JSON"),
        (lambda a: (a / "adapter_config.json").unlink(), "holds neither an adapter"),
        (lambda a: (a / "adapter_model.safetensors").write_bytes(b"x" * 50), "no whole safetensors file"),
        (lambda a: (a / "adapter_model.safetensors").rename(a / "adapter_model.bin"), "is a pickle, which can run"),
        (lambda a: (a.parent / "recipe.yaml").write_text("a: ["), "is not valid YAML"),
    ],
)
def test_damaged_adapters_are_one_message(run, capsys, spoil, message):
    folder = run()
    spoil(folder / "adapter")
    assert main(["export", str(folder), "--to", "lora"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (folder / "lora").exists()
