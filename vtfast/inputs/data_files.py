"""Questions with true answers from a file: objects with a question and an answer, or conversations.

The file has JSON lines or is one JSON array. An entry is an object, in one of two forms:

    {"image": "a.png", "question": "What is this?", "answer": "a cat"}
    {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                         {"from": "gpt", "value": "a cat"}, …]}

The second is the format that LLaVA is trained on; `messages` with `role` and `content` are read as
well. Every answer of a conversation makes one example, with the turns before it as its context.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtfast.errors import InputError
from vtfast.inputs.chats import MARK, Turn, check_marks
from vtfast.inputs.data import Example, answer_ids
from vtfast.inputs.pictures import Source, open_picture, picture_source

_TABLES = (".csv", ".tsv", ".xlsx", ".parquet")
_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class BadLine:
    """A line, or an entry of an array, that cannot be used, and why.

    Attributes:
        number: counted from 1.
        where: the same in words: "line 3", or "entry 3 (id 000000033471)".
    """

    number: int
    reason: str
    where: str = ""


def read_examples(
    path: Path | str,
    tokenizer: Any = None,
    *,
    folder: Path | str | None = None,
    most: int | None = None,
) -> tuple[list[Example], list[BadLine]]:
    """The examples of a file of JSON lines or of one JSON array, and the entries that are unusable.

    `image` (or `images`) of an entry is a path, a data URL or base64, or a list of them. In texts
    `<image>` marks where a picture stands; without it all of them come first. Other fields are
    ignored, and so are empty lines. Every picture is opened once, so that what cannot be read is
    known before a long run.

    Args:
        tokenizer: if given, entries with an answer without a token are unusable too.
        folder: what paths of pictures are relative to; by default the file's own folder.
        most: stop after so many examples.

    Raises InputError for a file that cannot be read or has no entry.
    """
    path = Path(path)
    if path.suffix.lower() in _TABLES:
        raise InputError(
            f"{path} is a table; write a JSON object per line, such as "
            '{"image": "a.png", "question": "…", "answer": "…"}'
        )
    folder = path.parent if folder is None else Path(folder)
    examples: list[Example] = []
    bad: list[BadLine] = []
    for number, entry, unit in _entries(path):
        if most is not None and len(examples) >= most:
            break
        where = f"{unit} {number}"
        try:
            fields = _object(entry)
            if unit == "entry" and "id" in fields:
                where += f" (id {fields['id']!s:.60})"
            examples += _examples(fields, folder, f"{path.name} {where}", tokenizer)
        except InputError as error:
            bad.append(BadLine(number, str(error), where))
    if not examples and not bad:
        raise InputError(
            f'{path} is empty; a line is like {{"image": "a.png", "question": "…", "answer": "…"}}'
        )
    return examples[:most], bad


def _entries(path: Path) -> Iterator[tuple[int, Any, str]]:
    """Entries with their numbers, and what they are called: lines are text, others are JSON."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"cannot read {path}: {reason}; pass a file of JSON lines") from None
    body = text.strip()
    if body.startswith("["):
        try:
            array, end = json.JSONDecoder().raw_decode(body)
        except (ValueError, RecursionError) as error:
            raise InputError(f"cannot read {path}: the array is not JSON ({error})") from None
        if end == len(body):
            yield from ((number, entry, "entry") for number, entry in enumerate(array, 1))
            return
    # not splitlines(), which also splits at U+2028 and the like inside a text
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line, "line"


def _object(entry: Any) -> dict[str, Any]:
    """The fields of an entry."""
    if isinstance(entry, str):
        try:
            entry = json.loads(entry)
        except json.JSONDecodeError as error:
            raise InputError(f"it is not JSON ({error.msg} at character {error.pos + 1})") from None
        except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
            raise InputError(f"Python cannot read this JSON ({error})") from None
    if not isinstance(entry, dict):
        raise InputError("it is not a JSON object")
    return entry


def _examples(fields: dict[str, Any], folder: Path, name: str, tokenizer: Any) -> list[Example]:
    """The examples of one entry: one, or one for each answer of a conversation."""
    images = _images(fields, folder)
    key = next((key for key in ("conversations", "messages") if key in fields), None)
    if key is None:
        for field in ("question", "answer"):
            if field not in fields:
                raise InputError(f'"{field}" is missing')
            if not _is_text(fields[field]):
                raise InputError(f'"{field}" is not text')
        found = [Example(images, fields["question"], fields["answer"], name)]
    else:
        found = _conversation(_turns(fields[key], key), images, name)
    for image in images:
        open_picture(image, "picture")
    if tokenizer is not None:
        for example in found:
            answer_ids(tokenizer, example.answer)
    return found


def _images(fields: dict[str, Any], folder: Path) -> tuple[Source, ...]:
    images = fields.get("image") or fields.get("images")
    if not images and fields.get("video"):
        raise InputError('it has a video and no picture; list frames of it as "image"')
    if not images:
        raise InputError('it has no picture: "image" is missing or empty, so nothing can be pruned')
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(i, str) for i in images):
        raise InputError('"image" is not a path or a list of paths')
    return tuple(picture_source(image, folder) for image in images)


def _turns(raw: Any, key: str) -> list[Turn]:
    """The turns of a conversation: maybe a system prompt, then questions and answers in turn."""
    if not isinstance(raw, list) or not all(isinstance(turn, dict) for turn in raw):
        raise InputError(f'"{key}" is not a list of turns, {{"from": "human", "value": "…"}} first')
    turns: list[Turn] = []
    for number, turn in enumerate(raw, 1):
        said_by, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        role = _ROLES.get(str(said_by), said_by)
        follows = "assistant" if turns and turns[-1][0] == "user" else "user"
        if role != follows and (turns or role != "system"):
            raise InputError(
                f'turn {number} is from {said_by!r}; expected "human" and "gpt" in turn, and '
                '"system" only before them'
            )
        if not _is_text(text):
            raise InputError(f"turn {number} is not text")
        if role == "assistant" and MARK in text:
            raise InputError(f"turn {number} has {MARK} in an answer; pictures stand in questions")
        turns.append((role, text))
    return turns


def _conversation(turns: list[Turn], images: tuple[Source, ...], name: str) -> list[Example]:
    """An example for each answer that has a picture before it, with the pictures that have."""
    texts = [text for _, text in turns]
    check_marks(texts, len(images))
    marked = any(MARK in text for text in texts)
    found = []
    for i, (role, answer) in enumerate(turns):
        seen = sum(text.count(MARK) for text in texts[:i]) if marked else len(images)
        if role == "assistant" and seen:
            context, question = tuple(turns[: i - 1]), texts[i - 1]
            label = f"{name}, turn {i + 1}"
            found.append(Example(images[:seen], question, answer, label, context))
    if not found:
        raise InputError("its conversation has no answer after a picture")
    return found


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value.encode().strip())
    except UnicodeEncodeError:  # a lone surrogate
        return False
