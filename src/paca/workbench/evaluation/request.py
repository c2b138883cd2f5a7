"""What somebody asks to be evaluated: the options of `paca eval`."""

from collections.abc import Sequence
from dataclasses import dataclass

from paca.errors import PacaError
from paca.workbench.base.options import Several, SeveralSources, option, too_small
from paca.workbench.evaluation.mt_bench.endpoint import Endpoint
from paca.workbench.models.names import names_model

_HARNESS = "mmlu and other tasks of the harness"
_TEXT = "perplexity and preference"
_BENCH = "mt-bench"


@dataclass(frozen=True)
class Request:
    """A model, and what is to be measured of it.

    Every field is the option of `paca eval` of the same name, and `paca eval --help` explains it. MT-Bench's answers
    are rated where `judge_url` and `judge_model` are given, and only written otherwise.
    """

    model: str = option(
        "a run's output folder, an adapter, or a model", known=names_model, more="more", metavar="MODEL_OR_ADAPTER"
    )
    tasks: Sequence[str] = option(
        "mmlu, perplexity, preference, mt-bench, or the harness's", action=Several, nargs="+", metavar="TASK"
    )
    more: Sequence[str] = option(
        "further ones, over one loading of their base", (), positional=True, nargs="*", metavar="MORE"
    )
    output: str | None = option("where results go; eval/ beside the adapter when omitted", None, metavar="DIR")
    overwrite: bool = option("start again where an evaluation is there", False)
    limit: int | None = option(
        "at most N questions per task, subject or category, or N sequences", None, least=1, metavar="N"
    )
    merged: bool = option("merge the adapter into the weights first", False)
    dtype: str | None = option("hold the model in it; as in the run when omitted", None, metavar="NAME")
    batch_size: int = option("sequences at a time (%(default)s)", 1, least=1, metavar="N")

    mmlu_data: str | None = option("MMLU's dev/ and test/, or a Parquet file", None, group=_HARNESS, metavar="DIR")
    shots: int | None = option(
        "examples in the prompt; the task's own when omitted", None, least=0, group=_HARNESS, metavar="N"
    )
    apply_chat_template: bool = option("write prompts as conversations", False, group=_HARNESS)
    include: str | None = option("a folder with your own task files", None, group=_HARNESS, metavar="DIR")
    trust_task_files: bool = option("let them run the Python that they name", False, group=_HARNESS)

    text: Sequence[str] = option(
        "as a recipe's data.train", (), group=_TEXT, action=SeveralSources, nargs="+", metavar="SOURCE"
    )
    beta: float = option("of the rewards that preference compares (%(default)s)", 0.1, group=_TEXT, metavar="X")
    reference: str | None = option(
        "the adapter that preference compares with, in place of the base", None, group=_TEXT, metavar="ADAPTER"
    )
    length: int = option("tokens per sequence (%(default)s)", 1024, least=2, group=_TEXT, metavar="N")

    mt_bench: str | None = option(
        "question.jsonl, judge_prompts.jsonl, reference_answer/", None, group=_BENCH, metavar="DIR"
    )
    max_new_tokens: int = option("per answer (%(default)s)", 1024, least=1, group=_BENCH, metavar="N")
    seed: int = option("of the sampled answers (%(default)s)", 42, least=0, group=_BENCH, metavar="N")
    judge_url: str | None = option("an OpenAI-compatible endpoint, such as …/v1", None, group=_BENCH, metavar="URL")
    judge_model: str | None = option("the judge's name there", None, group=_BENCH, metavar="NAME")
    judge_prompts: str | None = option("in place of judge_prompts.jsonl", None, group=_BENCH, metavar="FILE")
    judge_parallel: int = option("calls at a time (%(default)s)", 1, least=1, group=_BENCH, metavar="N")
    judge_max_tokens: int = option("per verdict (%(default)s)", 2048, least=1, group=_BENCH, metavar="N")
    judge_retries: int = option("of a failed call (%(default)s)", 6, least=0, group=_BENCH, metavar="N")
    judge_key_variable: str = option(
        "the environment variable with the key (%(default)s)", "OPENAI_API_KEY", group=_BENCH, metavar="NAME"
    )

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense, and half a judge."""
        problems = too_small(self)
        if not self.tasks or not all(self.tasks):
            problems.append("no task is named; give --tasks mmlu, perplexity, mt-bench, or names of the harness")
        if not 0 < self.beta < float("inf"):
            problems.append(f"beta = {self.beta}: expected more than 0")
        if (self.judge_url is None) != (self.judge_model is None):
            problems.append("--judge-url and --judge-model go together: where the judge is, and its name there")
        if problems:
            raise PacaError("; ".join(problems))
        _ = self.judge  # whose address is checked before anything is measured

    @property
    def judge(self) -> Endpoint | None:
        """Who rates MT-Bench's answers, if anybody."""
        if self.judge_url is None or self.judge_model is None:
            return None
        return Endpoint(
            self.judge_url, self.judge_model, self.judge_key_variable, self.judge_retries, self.judge_max_tokens
        )
