"""Examples to fine-tune on: from lines of JSON, or written dates, as rows of tokens with their targets.

A line is an object of one of these forms, where a text may also be a list of chat messages:

    {"prompt": text, "response": text}
    {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}
    {"prompt": text, "chosen": text, "rejected": text}        two answers, the better one first
"""

import datetime
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.support import Refusal
from experiments.support.data import corpora
from proxlm import lm, losses

FORMS = {True: ("prompt", "chosen", "rejected"), False: ("prompt", "response")}


class Example(NamedTuple):
    """A conversation as tokens: the prompt, and one answer or two, each with its targets.

    Attributes:
      prompt: tokens up to the first answer.
      answers: of each the tokens of the whole, and the targets, −100 at what is not learnt.
      response: the first answer as text.
    """

    prompt: list[int]
    answers: list[tuple[list[int], list[int]]]
    response: str


def read(path: str, run: Any) -> list[dict[str, Any]]:
    """The objects of a file, one a line; written dates where there is no path."""
    if not path:
        return dates(480)
    lines = [line for line in corpora.text_file(path).split("\n")]
    run.check_input(path)
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Refusal(f"data: line {number} of {path} is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise Refusal(f"data: line {number} of {path} is a {type(row).__name__}: expected an object")
        rows.append(row | {"line": number})
    return rows


def dates(number: int) -> list[dict[str, Any]]:
    """Dates to be written out; the rejected answer takes the month for the day, or the next year."""
    rng, rows = np.random.default_rng(0), []
    for line in range(1, number + 1):
        date = datetime.date(1900, 1, 1) + datetime.timedelta(int(rng.integers(54_000)))
        wrong = date.replace(day=date.month, month=date.day) if date.day <= 12 else date.replace(day=1)
        written = [f"{day.day} {day:%B} {day.year}" for day in (date, wrong)]
        if written[0] == written[1]:
            written[1] = f"{date.day} {date:%B} {date.year + 1}"
        row = {"prompt": f"Write the date {date.isoformat()} in words.", "response": written[0]}
        rows.append(row | {"chosen": written[0], "rejected": written[1], "line": line})
    return rows


def encode(row: dict[str, Any], model: lm.Pretrained, *, pairs: bool, chat: bool) -> Example:
    """An example as tokens; a Refusal names the line and what is wrong with it."""
    try:
        conversations = _conversations(row, pairs)
        if chat and model.template is not None:
            encoded = [_chat_tokens(messages, model) for messages in conversations]
        else:
            encoded = [_plain_tokens(messages, model) for messages in conversations]
    except ValueError as error:
        raise Refusal(f"data: line {row['line']}: {error}") from error
    first = next(i for i, target in enumerate(encoded[0][1]) if target != losses.IGNORED)
    response = next(part["content"] for part in conversations[0] if part["role"] == "assistant")
    return Example(encoded[0][0][: first + 1], encoded, response)


def rows_of(examples: Sequence[Example], longest: int) -> dict[str, np.ndarray]:
    """Rows of tokens `[N, answers, T]` and of the targets beside them, padded on the right.

    A causal model does not see padding on the right of what it reads, and targets there are −100.
    """
    length = -(-(longest - 1) // 8) * 8
    pad = lambda row, value: row + (length - len(row)) * [value]
    tokens = [[pad(answer[:-1], 0) for answer, _ in example.answers] for example in examples]
    targets = [[pad(learnt, losses.IGNORED) for _, learnt in example.answers] for example in examples]
    return {"tokens": np.array(tokens, np.int32), "targets": np.array(targets, np.int32)}


def packed(examples: Sequence[Example], length: int) -> dict[str, np.ndarray]:
    """Rows `[N, 1, length]` that hold several examples, each a segment with a number of its own.

    Each goes into the first row that has room for it, the longest first; what is left is segment 0.
    """
    rows: list[list[tuple[list[int], list[int]]]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda one: -len(one.answers[0][0])):
        tokens, targets = example.answers[0]
        at = next((i for i, left in enumerate(room) if left >= len(targets)), len(rows))
        if at == len(rows):
            rows, room = [*rows, []], [*room, length]
        rows[at].append((tokens[:-1], targets))
        room[at] -= len(targets)
    result = {name: np.zeros((len(rows), 1, length), np.int32) for name in ("tokens", "targets", "segments")}
    result["targets"] += losses.IGNORED
    for i, row in enumerate(rows):
        ends = np.cumsum([len(targets) for _, targets in row])
        for number, (end, part) in enumerate(zip(ends, row, strict=True), start=1):
            place = np.s_[i, 0, end - len(part[1]) : end]
            for name, values in zip(result, (*part, number), strict=True):
                result[name][place] = values
    return result


def _conversations(row, pairs):
    """The messages of the one answer, or of both."""
    if "messages" in row and not pairs:
        conversations = [_messages(row["messages"], "")]
    elif all(name in row for name in FORMS[pairs]):
        prompt, *answers = ([row[name], "user" if name == "prompt" else "assistant"] for name in FORMS[pairs])
        conversations = [_messages(*prompt) + _messages(*answer) for answer in answers]
    else:
        known = ", ".join(name for name in row if name != "line")
        expected = "prompt, chosen and rejected" if pairs else "prompt and response, or messages"
        raise ValueError(f"it has {known or 'nothing'}: expected {expected}")
    for messages in conversations:
        if not any(part["role"] == "assistant" for part in messages):
            raise ValueError("no message is the assistant's, so there is nothing to learn")
    return conversations


def _messages(value, role):
    """Messages from a text of one role, or as they are given."""
    if isinstance(value, str) and role:
        return [{"role": role, "content": value}]
    is_message = lambda part: (
        isinstance(part, dict) and all(isinstance(part.get(name), str) for name in ("role", "content"))
    )
    if not isinstance(value, list) or not all(map(is_message, value)):
        raise ValueError(f"expected messages with a role and a content, got {str(value)[:40]!r}")
    return value


def _chat_tokens(messages, model):
    """Tokens of a conversation in the model's template, and targets: the assistant's words and turn's end."""
    tokens = model.chat(messages, add_generation_prompt=False)
    learnt = np.zeros(len(tokens), bool)
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = model.chat(messages[:i])
            after = model.chat(messages[: i + 1], add_generation_prompt=False)
            if tokens[: len(before)] != before or tokens[: len(after)] != after:
                raise ValueError("the chat template changes earlier turns by later ones: give single turns")
            learnt[len(before) : len(after)] = True
    return tokens, _targets(tokens, learnt)


def _plain_tokens(messages, model):
    """Tokens of texts in lines of their own, each of the assistant's ended by the first stop token."""
    tokens, learnt = [], []
    for message in messages:
        is_answer = message["role"] == "assistant"
        ids = model.tokenizer.encode(
            message["content"] + ("" if is_answer else "\n"), add_special_tokens=False
        ).ids
        ids += list(model.stops[:1]) if is_answer else []
        tokens += ids
        learnt += len(ids) * [is_answer]
    return tokens, _targets(tokens, np.array(learnt, bool))


def _targets(tokens, learnt):
    """The next token of each but the last, where it is to be learnt."""
    if not learnt[1:].any() or learnt[:1].any():
        raise ValueError("expected a prompt that is not empty, and an answer that is not")
    return np.where(learnt[1:], tokens[1:], losses.IGNORED).tolist()
