"""Conversations with a tiny model: history, the adapter's switch, what a pipe prints, and mistakes."""

import io
import json
import os
import shutil

import pytest
import torch
from peft import PeftModel
from tests.workbench.tiny import make_tokenizer, save_adapted
from transformers import AutoModelForCausalLM

from paca import PacaError
from paca.workbench.chat import Conversation, converse
from paca.workbench.cli.main import main
from paca.workbench.data.loss_facts import eos_token_ids
from paca.workbench.models.generation import Sampling, context_length
from paca.workbench.training.adapted import find_source, load_adapted, load_several

GREEDY = Sampling(temperature=0, max_new_tokens=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with an adapter that changes what it says."""
    return save_adapted(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def conversation(folder):
    return Conversation(*load_adapted(find_source(str(folder / "adapter"))), GREEDY)


class Lines(io.StringIO):
    """An input of lines that are counted as they are read."""

    def __init__(self, lines):
        super().__init__()
        self.lines = lines

    def __next__(self):
        return next(self.lines)


def nothing(_):
    """Show nothing."""


def greedy(model, tokenizer, messages):
    """What the model says by plain `generate`."""
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(
        **inputs, do_sample=False, max_new_tokens=30, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
    )
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_the_answer_comes_in_pieces_and_the_history_is_read(conversation):
    pieces = []
    first = conversation.say("The cat jumps.", pieces.append)
    assert "".join(pieces).strip() == first
    assert len(pieces) > 1
    second = conversation.say("And the dog?", nothing)
    model, tokenizer = conversation.model, conversation.tokenizer
    turns = [{"role": "user", "content": "The cat jumps."}, {"role": "assistant", "content": first}]
    asked = {"role": "user", "content": "And the dog?"}
    assert second == greedy(model, tokenizer, [*turns, asked])
    assert second != greedy(model, tokenizer, [asked])


def test_the_adapter_goes_off_and_on_again(conversation, folder):
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    asked = [{"role": "user", "content": "The cat jumps."}]
    on = conversation.say("The cat jumps.", nothing)
    converse(conversation, ["/adapter off"], nothing)
    off = conversation.say_again(nothing)
    assert off == greedy(base, conversation.tokenizer, asked) != on
    assert len(conversation.messages) == 2
    converse(conversation, ["/adapter on", "/again"], nothing)
    assert conversation.messages[-1]["content"] == on


def test_the_system_message_is_read(conversation):
    plain = conversation.say("The cat jumps.", nothing)
    conversation.messages.clear()
    conversation.system = "The fox walks over the log. " * 3
    assert conversation.say("The cat jumps.", nothing) != plain


def test_ctrl_c_ends_the_answer_and_not_the_conversation(conversation):
    shown = []

    def interrupt(piece):
        shown.append(piece)
        if len(shown) == 2:
            raise KeyboardInterrupt

    conversation.adapter_on = False
    whole = conversation.say("The cat jumps.", nothing)
    conversation.messages.clear()
    cut = conversation.say("The cat jumps.", interrupt)
    assert whole.startswith(cut)
    assert len(cut) < len(whole)
    conversation.adapter_on = True
    assert conversation.say("And the dog?", nothing)
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2


@pytest.mark.road("terminals")
def test_in_a_pipe_ctrl_c_ends_the_conversation(folder, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("paca.workbench.chat.generate", interrupt)
    monkeypatch.setattr("sys.stdin", io.StringIO("cat\ndog\n"))
    assert main(["chat", str(folder / "adapter")]) == 130
    assert capsys.readouterr().err == "paca chat: interrupted\n"


@pytest.mark.road("terminals")
def test_a_conversation_ends_where_nobody_reads_the_answers(folder, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    asked = iter(["The cat jumps.\n"] * 3)
    with os.fdopen(writer, "w", encoding="utf-8") as gone:
        monkeypatch.setattr("sys.stdin", Lines(asked))
        monkeypatch.setattr("sys.stdout", gone)
        assert main(["chat", str(folder / "adapter"), "--max-new-tokens", "4"]) == 0
    assert len(list(asked)) == 2


@pytest.mark.road("terminals")
def test_a_system_message_that_is_no_text(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("cat\n"))
    assert main(["chat", str(folder / "adapter"), "--system", "a\udcff"]) == 2
    assert "'the system message' holds half of a surrogate pair at character 1" in capsys.readouterr().err


def test_the_oldest_turns_go_where_the_model_can_read_no_more(conversation):
    conversation.model.config.max_position_embeddings = 128
    for _ in range(4):
        conversation.say("The dog walks over the mat.", nothing)
    assert 2 <= len(conversation.messages) < 8
    conversation.messages.clear()
    with pytest.raises(PacaError, match=r"The message has .* tokens with its frame; the model reads 128, of which 30"):
        conversation.say("cat " * 500, nothing)
    assert conversation.messages == []
    assert context_length(conversation.model) == 128


def test_an_answer_ends_at_the_mark_of_either_model_or_tokenizer(conversation):
    conversation.model.generation_config.eos_token_id = [7, 9]
    assert eos_token_ids(conversation.tokenizer, conversation.model) == [1, 7, 9]


def test_drawing_follows_the_seed(folder, monkeypatch, capsys):
    def say(*options):
        monkeypatch.setattr("sys.stdin", io.StringIO("The cat jumps.\n"))
        assert main(["chat", str(folder / "adapter"), "--max-new-tokens", "8", "--temperature", "2", *options]) == 0
        return capsys.readouterr().out

    assert say() == say()
    assert say() != say("--seed", "1")


def test_a_pipe_gets_the_answers_and_nothing_else(folder, conversation, monkeypatch, capsys):
    lines = "The cat jumps.\n\n/reset\nAnd the dog?\n/quit\nnever read\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    options = ["--temperature", "0", "--max-new-tokens", "30"]
    assert main(["chat", str(folder / "adapter"), *options]) == 0
    printed = capsys.readouterr().out
    expected = []
    for text in ("The cat jumps.", "And the dog?"):
        conversation.messages.clear()
        conversation.say(text, expected.append)
        expected.append("\n")
    assert printed == "".join(expected)


def test_at_a_terminal_a_mistake_is_shown_and_the_conversation_goes_on(conversation):
    shown = []
    converse(
        conversation, ["/again", "/adapter maybe", "/rest", "/help", "The cat jumps."], shown.append, terminal=True
    )
    said = "".join(shown)
    assert "There is no message to answer again." in said
    assert "/adapter 'maybe': type /adapter on or /adapter off." in said
    assert "There is no command /rest; did you mean '/reset'? /adapter on|off" in said
    assert "/again: answer the last message again" in said
    assert conversation.messages[0] == {"role": "user", "content": "The cat jumps."}


def test_who_answers_is_told_and_stands_at_the_prompt(conversation, several):
    shown = []
    prompts = [conversation.answering]
    for line in ("/adapter off", "/adapter on"):
        converse(conversation, [line], shown.append, terminal=True)
        prompts.append(conversation.answering)
    assert shown == ["(adapter off)\n", "(adapter on)\n"]
    assert prompts == ["adapter on", "adapter off", "adapter on"]
    model, adapters = load_several(several)
    both = Conversation(model, adapters[0].tokenizer, GREEDY, adapters=adapters)
    assert both.answering == "run"
    converse(both, ["/adapter third"], shown.append, terminal=True)
    assert (both.answering, shown[-1]) == ("third", "(third)\n")
    assert Conversation(model.unload(), adapters[0].tokenizer).answering == ""


def test_an_answer_that_was_cut_is_marked(conversation, monkeypatch):
    answers, notes = [], []
    converse(conversation, ["The cat jumps."], answers.append, note=notes.append)
    assert notes == [f"(cut at --max-new-tokens {GREEDY.max_new_tokens})\n"]
    assert "cut" not in "".join(answers)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(conversation.model, "generate", interrupt)
        converse(conversation, ["/again"], answers.append, note=notes.append)
    assert notes[-1] == "(stopped)\n"
    ends = sorted(eos_token_ids(conversation.tokenizer, conversation.model))
    monkeypatch.setattr(conversation.model, "generate", lambda input_ids, **_: with_end(input_ids, ends[0]))
    converse(conversation, ["/again"], answers.append, note=notes.append)
    assert len(notes) == 2, "an answer that ends by itself has no mark"


def with_end(input_ids, end):
    return torch.cat([input_ids, torch.tensor([[end]])], dim=1)


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        (b"/adapter of\n", [], "type /adapter on or /adapter off"),
        (b"\xff\xfe\n", [], "The input is not UTF-8 text"),
        (b"\xed\xa0\x80\n", [], "The input is not UTF-8 text"),
        (b"\x00\x00\x00\xff\n", [], "The input is not UTF-8 text"),
        (b"cat " * 10_000, [], "Shorten it, or lower --max-new-tokens."),
        (b"x\n", ["--temperature", "-1"], "temperature = -1.0: expected 0 or more"),
        (b"x\n", ["--top-p", "0", "--max-new-tokens", "0"], "top_p = 0.0: expected more than 0, at most 1; max_new"),
    ],
)
def test_in_a_pipe_a_mistake_ends_it(folder, monkeypatch, capsys, line, options, message):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(line), encoding="utf-8"))
    assert main(["chat", str(folder / "adapter"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_cannot_be_talked_to(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("/adapter off\n"))
    assert main(["chat", str(folder / "model")]) == 2
    assert "There is no adapter: a plain model was loaded." in capsys.readouterr().err
    AutoModelForCausalLM.from_pretrained(folder / "model").save_pretrained(tmp_path)
    make_tokenizer(chat_template=None).save_pretrained(tmp_path)
    assert main(["chat", str(tmp_path)]) == 2
    assert "has no chat template" in capsys.readouterr().err


@pytest.fixture(scope="module")
def several(folder):
    """Three adapters of one model: two in the folders of runs of the same name, one in its own."""
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)
    places = [folder / "a" / "run" / "adapter", folder / "b" / "run" / "adapter", folder / "third"]
    for number, place in enumerate(places):
        torch.manual_seed(number)
        for name, parameter in model.named_parameters():
            if "paca_delta" in name:
                parameter.data.normal_(0, 0.5)
        model.save_pretrained(place)
    return [str(folder / "a" / "run"), str(folder / "b" / "run"), str(folder / "third")]


def test_adapters_of_one_base_are_switched_by_name(several):
    model, adapters = load_several(several)
    assert [adapter.name for adapter in adapters] == ["run", "run-2", "third"]
    alone = [Conversation(*load_adapted(find_source(name)), GREEDY).say("The cat", nothing) for name in several]
    assert len(set(alone)) == 3
    conversation = Conversation(model, adapters[0].tokenizer, GREEDY, adapters=adapters)
    assert conversation.say("The cat", nothing) == alone[0], "the first answers until another is asked for"
    for name, answer in [("run-2", alone[1]), ("third", alone[2]), ("run", alone[0])]:
        conversation.switch_adapter(False)
        conversation.use_adapter(name)
        assert conversation.say_again(nothing) == answer
    base = AutoModelForCausalLM.from_pretrained(find_source(several[0]).base).state_dict()
    state = model.state_dict()
    held = {name.removeprefix("base_model.model.").replace("base_layer.", ""): state[name] for name in state}
    assert all(torch.equal(held[name], tensor) for name, tensor in base.items())


def test_an_adapter_that_is_not_there(several, conversation):
    model, adapters = load_several(several[:2])
    with pytest.raises(PacaError, match="or the name of one: run, run-2; did you mean 'run'"):
        Conversation(model, adapters[0].tokenizer, GREEDY, adapters=adapters).use_adapter("rum")
    with pytest.raises(PacaError, match=r"/adapter 'second': type /adapter on or /adapter off\."):
        conversation.use_adapter("second")


def test_adapters_of_two_bases_do_not_go_together(several, folder):
    other = folder / "elsewhere"
    shutil.copytree(folder / "third", other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/other"}))
    with pytest.raises(PacaError, match=r"are of two base models, .* and 'org/other'; name adapters of one"):
        load_several([several[0], str(other)])
    with pytest.raises(PacaError, match="There is no folder 'smollm2-135m-instruct'; name a run's output folder"):
        load_several([several[0], "smollm2-135m-instruct"])


def test_paca_chat_with_two_adapters(several, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The cat\n/adapter run-2\n/again\n"))
    assert main(["chat", *several[:2], "--temperature", "0", "--max-new-tokens", "30"]) == 0
    both = capsys.readouterr().out
    for name in several[:2]:
        answer = Conversation(*load_adapted(find_source(name)), GREEDY).say("The cat", nothing)
        assert answer in both
