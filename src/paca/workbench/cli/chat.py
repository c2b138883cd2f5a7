"""`paca chat MODEL_OR_ADAPTER`: a conversation with a model, at a terminal or in a pipe."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from paca.workbench.base.options import add_options, read_options
from paca.workbench.cli.verb import Verb
from paca.workbench.models.generation import Sampling

EXAMPLE = """\
at the prompt:
  /adapter on|off   answer with or without the adapter; the conversation stays
  /adapter NAME     answer by another one of several, named after its run
  /again            answer the last message again
  /reset            forget the conversation
  /quit             leave

In a pipe every line is a message, and nothing but the answers is printed.

example:
  $ paca chat outputs/mine
  $ paca chat outputs/first outputs/second
  $ echo "What is the capital of France?" | paca chat smollm2-135m-instruct --temperature 0
  The capital of France is Paris.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `paca chat` takes."""
    parser.usage = "%(prog)s MODEL_OR_ADAPTER [ADAPTER ...] [OPTION ...]"
    parser.add_argument("model", metavar="MODEL_OR_ADAPTER", help="a run's output folder, an adapter, or a model")
    parser.add_argument("more", metavar="ADAPTER", nargs="*", help="more adapters of the same base, to switch to")
    parser.add_argument("--system", metavar="TEXT", help="the system message; the template's own when omitted")
    add_options(parser, Sampling)
    parser.add_argument("--seed", type=int, metavar="N", default=42, help="of the sampling (%(default)s)")
    parser.add_argument("--dtype", metavar="NAME", help="hold the model in it; as in the run when omitted")


def run(arguments: argparse.Namespace) -> int:
    """Converse until the input ends, or nobody reads the answers any more."""
    from paca.workbench.base.progress import quiet_libraries
    from paca.workbench.chat import Conversation, converse
    from paca.workbench.training.adapted import find_source, load_adapted, load_several

    sampling = read_options(arguments, Sampling)
    with quiet_libraries():
        if arguments.more:
            model, adapters = load_several([arguments.model, *arguments.more], arguments.dtype)
            tokenizer = adapters[0].tokenizer
        else:
            adapters = []
            model, tokenizer = load_adapted(find_source(arguments.model), arguments.dtype)
        terminal = sys.stdin.isatty()
        conversation = Conversation(
            model, tokenizer, sampling, arguments.system, stoppable=terminal, adapters=adapters
        )

        from transformers import set_seed

        set_seed(arguments.seed)
        with contextlib.suppress(BrokenPipeError):
            piped = (line for line in sys.stdin)  # itself would be closed, with the generators that read it
            typed = _typed(conversation) if terminal else piped
            converse(conversation, typed, _show, terminal, _show if terminal else sys.stderr.write)
    return 0


def _show(text: str) -> None:
    print(text, end="", flush=True)
    if getattr(sys.stdout, "error", None) is not None:
        raise BrokenPipeError


def _typed(conversation: Any) -> Iterator[str]:
    """Lines that a person types, with an editable line where Python has readline; Ctrl-C empties the line."""
    from paca.workbench.base.waiting import stage, still
    from paca.workbench.chat import not_text

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - its import is its effect on input()
    _show("Type /help for the commands, /quit to leave.\n")
    while True:
        try:
            with still():
                line = input(f"{conversation.answering}> ")
            stage("thinking")
            yield line
        except EOFError:
            _show("\n")
            return
        except KeyboardInterrupt:
            _show("\n")
        except UnicodeDecodeError as error:
            _show(f"{not_text(error)}\n")


VERB = Verb(
    "chat", "Talk to a model or an adapter, and switch the adapter off to feel it.", EXAMPLE, add_arguments, run
)
