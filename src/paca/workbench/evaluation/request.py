"""What somebody asks to be evaluated."""

from dataclasses import dataclass, field

from paca.errors import PacaError
from paca.workbench.evaluation.mt_bench.endpoint import Endpoint


@dataclass(frozen=True)
class Request:
    """A model, and what is to be measured of it.

    Args:
        model: A run's output folder, an adapter, or a model.
        tasks: `mmlu`, `perplexity`, `mt-bench`, or names that lm-evaluation-harness knows.
        output: The folder that results go to; beside the adapter when omitted.
        overwrite: Start again where an evaluation is there.
        dtype: The precision to hold the model in; as in the run when omitted.
        merged: Merge the adapter into the weights first.
        limit: At most so many questions of each task or category.
        shots: Examples in each prompt; the task's own number when omitted, 5 for MMLU.
        batch_size: Sequences per forward pass.
        chat_template: Write the harness's prompts as conversations.
        mmlu: Where MMLU's files are.
        include: A folder with task files of the harness.
        trust: Run the Python that such task files name.
        texts: What perplexity is measured on: sources as in a recipe's `data.train`.
        length: Tokens per block of text.
        mt_bench: The folder with MT-Bench's files.
        judge_prompts: The judge's prompts; `judge_prompts.jsonl` in that folder when omitted.
        judge: Who rates MT-Bench's answers; they are only written when omitted.
        parallel: So many calls of the judge at a time.
        max_new_tokens: The longest answer to a turn of MT-Bench.
        seed: Of the drawing of answers.
    """

    model: str
    tasks: list[str]
    output: str | None = None
    overwrite: bool = False
    dtype: str | None = None
    merged: bool = False
    limit: int | None = None
    shots: int | None = None
    batch_size: int = 1
    chat_template: bool = False
    mmlu: str | None = None
    include: str | None = None
    trust: bool = False
    texts: list[str] = field(default_factory=list)
    length: int = 1024
    mt_bench: str | None = None
    judge_prompts: str | None = None
    judge: Endpoint | None = None
    parallel: int = 1
    max_new_tokens: int = 1024
    seed: int = 42

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        problems = [
            f"{name.replace('_', '-')} = {value}: expected at least {least}"
            for name, value, least in (
                ("limit", self.limit, 1),
                ("shots", self.shots, 0),
                ("batch_size", self.batch_size, 1),
                ("length", self.length, 2),
                ("parallel", self.parallel, 1),
                ("max_new_tokens", self.max_new_tokens, 1),
                ("seed", self.seed, 0),
            )
            if value is not None and value < least
        ]
        if not self.tasks or not all(self.tasks):
            problems.append("no task is named; give --tasks mmlu, perplexity, mt-bench, or names of the harness")
        if problems:
            raise PacaError("; ".join(problems))
