"""The model's answers to MT-Bench's questions, kept one by one."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm

from paca.workbench.evaluation.evaluated_model import EvaluatedModel
from paca.workbench.evaluation.journal import Journal
from paca.workbench.evaluation.mt_bench.questions import Question
from paca.workbench.models.generation import Sampling, context_length, encode_prompt, generate

# As the published scores were made.
TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
    "humanities": 0.1,
}  # fmt: skip
OTHER_TEMPERATURE = 0.7


def answer_all(
    evaluated: EvaluatedModel, questions: Sequence[Question], journal: Journal, max_new_tokens: int, seed: int
) -> dict[str, Any]:
    """Answer every question that has no answer in the journal yet.

    A question's random numbers do not depend on which were answered before it. Returns how many were answered, and how
    many turns found no room in what the model can read.
    """
    from transformers import set_seed

    waiting = [question for question in questions if str(question.id) not in journal]
    if waiting:
        evaluated.load()  # which draws random numbers
    for question in tqdm(waiting, desc="answering", initial=len(questions) - len(waiting), total=len(questions)):
        set_seed(seed + question.id)
        temperature = TEMPERATURES.get(question.category, OTHER_TEMPERATURE)
        journal.add(str(question.id), _answer(evaluated, question, Sampling(temperature, 1.0, max_new_tokens)))
    without = sum(turn is None for question in questions for turn in journal[str(question.id)])
    return {"answered": len(questions), "without_room": without}


def _answer(evaluated: EvaluatedModel, question: Question, sampling: Sampling) -> list[str | None]:
    messages: list[dict[str, str]] = []
    answers: list[str | None] = []
    for turn in question.turns:
        messages.append({"role": "user", "content": turn})
        inputs = encode_prompt(evaluated.tokenizer, messages)
        room = context_length(evaluated.model) - inputs["input_ids"].shape[1]
        if room < 1:
            return [*answers, *[None] * (len(question.turns) - len(answers))]
        allowed = dataclasses.replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        answer, _ = generate(evaluated.model, evaluated.tokenizer, inputs, allowed)
        answers.append(answer.strip())
        messages.append({"role": "assistant", "content": answer.strip()})
    return answers
