"""The folder in which somebody types the commands of the pages: their files, small, and a tiny model."""

import json
import re
import shutil

from tests.paths import ROOT
from tests.toys import tiny_llama_config
from tests.workbench.evaluation.conftest import write_bench, write_mmlu
from tests.workbench.tiny import SENTENCES, save_adapted, write_jsonl

PAIRS = [{"prompt": line, "chosen": "The cat jumps.", "rejected": "The dog walks."} for line in SENTENCES] * 2
CHATS = [
    {"messages": [{"role": "user", "content": line}, {"role": "assistant", "content": SENTENCES[place - 1]}]}
    for place, line in enumerate(SENTENCES)
]


def reply(text, rank=None, replies=()):
    return {"text": text, "role": "assistant", "rank": rank, "replies": list(replies)}


TREES = [
    {
        "message_tree_id": f"{number}",
        "prompt": {"text": line, "role": "prompter", "replies": [reply("The cat.", 0), reply("The dog.", 1)]},
    }
    for number, line in enumerate(SENTENCES)
]


def yaml_block(page, number=0):
    """A recipe that a page prints."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[number]


def prepare(folder):
    """Make the folder `here` with what the pages take for granted, and `data` and `tiny`, a model, beside it.

    Returns `here`.
    """
    here, data = folder / "here", folder / "data"
    here.mkdir(parents=True)
    for place in (data, here / "FOLDER"):
        for name in ("instruct", "oasst"):
            (place / name).mkdir(parents=True)
        write_jsonl(place / "instruct" / "train.jsonl", CHATS)
        write_jsonl(place / "instruct" / "eval.jsonl", CHATS)
        write_jsonl(place / "oasst" / "chat.jsonl", CHATS)
        write_jsonl(place / "oasst" / "en_100_tree.jsonl", TREES)
    write_mmlu(here / "FOLDER" / "mmlu")
    shutil.copytree(here / "FOLDER" / "mmlu" / "dev", here / "FOLDER" / "mmlu" / "val")
    shutil.copytree(here / "FOLDER" / "mmlu", here / "mmlu")
    for path in (here / "FOLDER" / "mmlu" / "val").iterdir():
        path.rename(path.with_name(path.name.replace("_dev", "_val")))
    write_bench(here / "mt_bench")
    write_jsonl(here / "held-out.jsonl", CHATS)
    write_jsonl(here / "pairs.jsonl", PAIRS)
    write_jsonl(here / "think.jsonl", CHATS)
    (here / "pairs.txt").write_text("The cat jumps. The dog walks. " * 200)
    (here / "short.txt").write_text("The cat jumps. " * 20)
    save_adapted(folder / "tiny")
    tiny = str(folder / "tiny" / "model")
    template = json.loads((folder / "tiny" / "model" / "tokenizer_config.json").read_text()).get("chat_template")
    written = folder / "tiny" / "model" / "chat_template.jinja"
    (here / "deepseek.jinja").write_text(template or written.read_text())
    chat = {"train": "think.jsonl", "holdout_every": 4}
    recipe = {"model": {"name": tiny}, "data": chat, "method": {"name": "paca"}, "output_dir": "outputs/chat"}
    (here / "chat.yaml").write_text(json.dumps(recipe))
    (here / "my-recipe.yaml").write_text(yaml_block("docs/finetune.md"))
    (here / "train.py").write_text("from peft import PeftType\n\nprint(PeftType.PACA.value)\n")
    tiny_llama_config(num_hidden_layers=2).save_pretrained(here / "path" / "to")
    return here
