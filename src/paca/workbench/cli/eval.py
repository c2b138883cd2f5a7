"""`paca eval MODEL_OR_ADAPTER --tasks …`: MMLU and other tasks of the harness, perplexity, MT-Bench."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from paca.workbench.cli.verb import Verb

if TYPE_CHECKING:
    from paca.workbench.evaluation.request import Request

EXAMPLE = """\
tasks:
  mmlu         5-shot; with --mmlu-data DIR from local files, without a network
  perplexity   on the texts or conversations of --text
  mt-bench     answers to two-turn questions; rated by the judge at --judge-url
  any other    a task or group of lm-evaluation-harness, or of your task files in --include DIR

An evaluation that was interrupted goes on when the command is repeated; a finished one is only shown again.

example:
  $ paca eval outputs/mine --tasks mmlu --mmlu-data mmlu --limit 20
  $ paca eval outputs/mine --tasks perplexity --text held-out.jsonl
  $ paca eval outputs/mine --tasks mt-bench --mt-bench mt_bench --judge-url URL/v1 --judge-model NAME
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `paca eval` takes.

    Args:
        parser: The verb's parser.
    """
    parser.add_argument("model", metavar="MODEL_OR_ADAPTER", help="a run's output folder, an adapter, or a model")
    parser.add_argument("--tasks", required=True, metavar="NAMES", help="mmlu, perplexity, mt-bench, …; with commas")
    parser.add_argument("--output", metavar="DIR", help="where results go; eval/ beside the adapter when omitted")
    parser.add_argument("--overwrite", action="store_true", help="start again where an evaluation is there")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--limit", type=int, metavar="N", help="so many questions per task, subject or category")
    parser.add_argument("--merged", action="store_true", help="merge the adapter into the weights first")
    parser.add_argument("--dtype", metavar="NAME", help="hold the model in it; as in the run when omitted")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="sequences at a time (%(default)s)")
    harness = parser.add_argument_group("mmlu and other tasks of the harness")
    harness.add_argument("--mmlu-data", metavar="DIR", help="MMLU's dev/ and test/, or a Parquet file")
    harness.add_argument("--shots", type=int, metavar="N", help="examples in the prompt; the task's own when omitted")
    harness.add_argument("--apply-chat-template", action="store_true", help="write prompts as conversations")
    harness.add_argument("--include", metavar="DIR", help="a folder with your own task files")
    harness.add_argument("--trust-task-files", action="store_true", help="let them run the Python that they name")
    text = parser.add_argument_group("perplexity")
    text.add_argument("--text", nargs="+", default=[], metavar="SOURCE", help="as a recipe's data.train")
    text.add_argument("--length", type=int, default=1024, metavar="N", help="tokens per sequence (%(default)s)")
    bench = parser.add_argument_group("mt-bench")
    bench.add_argument("--mt-bench", metavar="DIR", help="question.jsonl, judge_prompts.jsonl, reference_answer/")
    bench.add_argument("--max-new-tokens", type=int, default=1024, metavar="N", help="per answer (%(default)s)")
    bench.add_argument("--seed", type=int, default=42, metavar="N", help="of the answers' drawing (%(default)s)")
    bench.add_argument("--judge-url", metavar="URL", help="an OpenAI-compatible endpoint, such as …/v1")
    bench.add_argument("--judge-model", metavar="NAME", help="the judge's name there")
    bench.add_argument("--judge-prompts", metavar="FILE", help="in place of judge_prompts.jsonl")
    bench.add_argument("--judge-parallel", type=int, default=1, metavar="N", help="calls at a time (%(default)s)")
    bench.add_argument("--judge-max-tokens", type=int, default=2048, metavar="N", help="per verdict (%(default)s)")
    bench.add_argument("--judge-retries", type=int, default=6, metavar="N", help="of a failed call (%(default)s)")
    bench.add_argument(
        "--judge-key-variable",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="the environment variable with the key (%(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print each result as it comes.

    Args:
        arguments: What was typed.

    Returns:
        0.

    Raises:
        PacaError: If a library is missing, or something can't be done.
    """
    from paca.errors import PacaError

    try:
        from paca.workbench.base.progress import quiet_libraries
        from paca.workbench.evaluation.evaluate import evaluate

        with quiet_libraries():
            for done in evaluate(_request(arguments)):
                if arguments.json:
                    print(json.dumps(done.result), flush=True)
                else:
                    print("\n".join([f"{done.name}: {done.file}", *done.lines]), flush=True)
    except ModuleNotFoundError as error:
        raise PacaError(f"The package {error.name!r} is missing. Type: pip install 'paca[eval]'") from error
    return 0


def _request(arguments: argparse.Namespace) -> Request:
    from paca.errors import PacaError
    from paca.workbench.evaluation.mt_bench.endpoint import Endpoint
    from paca.workbench.evaluation.request import Request

    if (arguments.judge_url is None) != (arguments.judge_model is None):
        raise PacaError("--judge-url and --judge-model go together: where the judge is, and its name there.")
    judge = None
    if arguments.judge_url is not None:
        judge = Endpoint(
            arguments.judge_url,
            arguments.judge_model,
            arguments.judge_key_variable,
            retries=arguments.judge_retries,
            max_tokens=arguments.judge_max_tokens,
        )
    return Request(
        model=arguments.model,
        tasks=[name.strip() for name in arguments.tasks.split(",")],
        output=arguments.output,
        overwrite=arguments.overwrite,
        dtype=arguments.dtype,
        merged=arguments.merged,
        limit=arguments.limit,
        shots=arguments.shots,
        batch_size=arguments.batch_size,
        chat_template=arguments.apply_chat_template,
        mmlu=arguments.mmlu_data,
        include=arguments.include,
        trust=arguments.trust_task_files,
        texts=arguments.text,
        length=arguments.length,
        mt_bench=arguments.mt_bench,
        judge_prompts=arguments.judge_prompts,
        judge=judge,
        parallel=arguments.judge_parallel,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
    )


SUMMARY = "Score a model or an adapter: MMLU and the harness's tasks, perplexity, MT-Bench."
VERB = Verb("eval", SUMMARY, EXAMPLE, add_arguments, run)
