"""Questions about pictures with their true answers: read from a file, encoded in batches."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image

from vtfast.errors import InputError
from vtfast.inputs.pictures import open_picture

_FIELDS = ("question", "answer")


@dataclass(frozen=True)
class Example:
    """A question about pictures, and its true answer.

    Attributes:
        images: open pictures, or files.
        name: what messages call the example, such as "data.jsonl line 3".
    """

    images: tuple[Image.Image | Path, ...]
    question: str
    answer: str
    name: str = "an example"


_WRITTEN = [field.name for field in fields(Example) if field.name not in ("images", "name")]


@dataclass(frozen=True)
class BadLine:
    """A line of a data file that cannot be used, and why."""

    number: int
    reason: str


@dataclass(frozen=True)
class Skipped:
    """An example that was left out of a measurement, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.name in self.reason else f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Batch:
    """Some examples as a model takes them.

    Attributes:
        inputs: what the processor returns for the prompts, padded on the left to one length.
        answers: token ids of each true answer; the end-of-sequence token may follow them.
        lengths: tokens of each answer without that end.
    """

    inputs: Any
    answers: list[list[int]]
    lengths: list[int]


class Dataset:
    """Examples for one model, under the name of a task.

    Args:
        processor: the model's own, with a tokenizer and a chat template.
        examples: at least one.
        task: what to call it in results.
        ends: whether an answer is right only if the model ends after it; by default the model may
            go on after the true answer.
        skip_bad: leave out what cannot be used, here and in every measurement, where an example
            that the processor or the model refuses would otherwise end the run.

    Attributes:
        examples: without those that were left out here.
        skipped: those, as `Skipped`.

    Raises InputError for no examples, an example without a picture, and an answer without tokens.
    """

    def __init__(
        self,
        processor: Any,
        examples: Sequence[Example],
        task: str,
        *,
        ends: bool = False,
        skip_bad: bool = False,
    ) -> None:
        if not examples:
            raise InputError(f"{task}: there is no example; pass at least one")
        self.processor, self.task, self.skip_bad = processor, task, skip_bad
        self.examples: list[Example] = []
        self.skipped: list[Skipped] = []
        tokenizer = processor.tokenizer
        self._end = [tokenizer.eos_token_id] if ends else []
        self._answers: list[list[int]] = []
        for example in examples:
            try:
                if not example.images:
                    raise InputError(f"{example.name} has no picture; leave it out")
                self._answers.append(answer_ids(tokenizer, example.answer))
                self.examples.append(example)
            except InputError as error:
                bad = Skipped(example.name, str(error))
                if not skip_bad:
                    raise InputError(str(bad)) from None
                self.skipped.append(bad)
        if not self.examples:
            raise InputError(f"{task}: no example can be used; {self.skipped[0]}")

    def __len__(self) -> int:
        return len(self.examples)

    def name_of(self, index: int) -> str:
        """What messages call an example."""
        return self.examples[index].name

    def batch(self, indices: Sequence[int], device: Any = "cpu") -> Batch:
        """The examples with these numbers, encoded, on a device.

        Prompts are padded on the left, as `generate` needs it, whatever the tokenizer's own side.
        """
        inputs = self._encoded(indices).to(device)
        answers = [self._answers[i] for i in indices]
        return Batch(inputs, [a + self._end for a in answers], [len(a) for a in answers])

    def pictures(self, index: int) -> list[Image.Image]:
        """The pictures of an example, open."""
        return [_opened(image) for image in self.examples[index].images]

    def keys(self) -> list[str]:
        """For each example, hex digits that change with its pictures, its question or its answer.

        They depend on nothing else: not on its place, its name or the other examples. Of equal
        examples the second has ".2" after its digits, and so on.
        """
        seen: Counter[str] = Counter()
        keys = []
        for example in self.examples:
            written = [getattr(example, name) for name in _WRITTEN]
            digest = hashlib.sha256(json.dumps([*written, self._end]).encode())
            for image in example.images:
                digest.update(_digest_of(image))
            key = digest.hexdigest()[:16]
            seen[key] += 1
            keys.append(key if seen[key] == 1 else f"{key}.{seen[key]}")
        return keys

    def fingerprint(self, first: int | None = None) -> str:
        """Hex digits that change with any question, answer or picture, but not with file names.

        The logs of vtfast 0.1 are of a whole data set. `first`: of so many examples; None: all.
        """
        digest = hashlib.sha256(json.dumps([self.task, self._end]).encode())
        for e in self.examples[:first]:
            digest.update(json.dumps([e.question, e.answer]).encode())
            for image in e.images:
                digest.update(_bytes_of(image))
        return digest.hexdigest()[:16]

    def _encoded(self, indices: Sequence[int]) -> Any:
        """What the processor makes of some examples."""
        chosen = [self.examples[i] for i in indices]
        texts = [chat(self.processor, e.question, len(e.images)) for e in chosen]
        images = [self.pictures(i) for i in indices]
        try:
            return self.processor(
                images=images, text=texts, padding=True, padding_side="left", return_tensors="pt"
            )
        except Exception as error:  # the picture is too small or too narrow, for example
            names = chosen[0].name
            if len(chosen) > 1:
                for i in indices:  # raises for the one that the processor refuses
                    self._encoded([i])
                names += f" to {chosen[-1].name} together"
            raise InputError(f"the processor cannot take {names}: {error}") from error


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """Token ids of an answer, without special tokens.

    Raises InputError where there are none, or where some stand for an unknown word.
    """
    ids: list[int] = tokenizer.encode(answer, add_special_tokens=False)
    if not ids:
        raise InputError(f"the answer {answer!r} has no token; pass one the tokenizer knows")
    if getattr(tokenizer, "unk_token_id", None) in ids:
        raise InputError(
            f"the answer {answer!r} is not in the tokenizer's vocabulary, so the model cannot give "
            "it; pass another"
        )
    return ids


def chat(processor: Any, question: str, pictures: int, clip: bool = False) -> str:
    """The prompt that asks a question about pictures and a video, in the processor's chat template.

    A processor without a template gets LLaVA-1.5's plain form, `USER: <image>\\n… ASSISTANT:`.

    Raises InputError for a processor that takes video and has no template: its model was trained on
    another form than LLaVA's.
    """
    if not processor.chat_template:
        if getattr(processor, "video_token", None):
            raise InputError(
                "the processor has no chat template, and vtfast knows a plain one for LLaVA only; "
                "add the chat_template.jinja of the original model"
            )
        return "USER: " + f"{processor.image_token}\n" * pictures + f"{question} ASSISTANT:"
    content: list[dict[str, str]] = [{"type": "image"} for _ in range(pictures)]
    content += [{"type": "video"}] if clip else []
    content.append({"type": "text", "text": question})
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True)


def read_examples(path: Path | str, tokenizer: Any = None) -> tuple[list[Example], list[BadLine]]:
    """The examples of a JSON lines file, and the lines that cannot be used.

    A line is an object with `image` (a path, or a list of them, relative to the file's folder),
    `question` and `answer`; other fields and empty lines are ignored. Every picture is opened once,
    so that what cannot be read is known before a long run.

    Args:
        tokenizer: if given, answers without a token are bad lines too.

    Raises InputError for a file that cannot be read or has no line.
    """
    path, examples, bad = Path(path), [], []
    try:
        # not splitlines(), which also splits at U+2028 and the like inside a text
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"cannot read {path}: {reason}; pass a file of JSON lines") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            examples.append(_example(line, path, number, tokenizer))
        except InputError as error:
            bad.append(BadLine(number, str(error)))
    if not examples and not bad:
        raise InputError(
            f'{path} is empty; a line is like {{"image": "a.png", "question": "…", "answer": "…"}}'
        )
    return examples, bad


def _example(line: str, path: Path, number: int, tokenizer: Any) -> Example:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"it is not JSON ({error.msg} at character {error.pos + 1})") from None
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
        raise InputError(f"Python cannot read this JSON ({error})") from None
    if not isinstance(fields, dict):
        raise InputError("it is not a JSON object")
    images = fields.get("image")
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not images or not all(isinstance(i, str) for i in images):
        raise InputError('"image" is not a path or a list of paths')
    for name in _FIELDS:
        if not _is_text(fields.get(name)):
            raise InputError(f'"{name}" is not text')
    places = tuple(path.parent / image for image in images)
    for place in places:
        open_picture(place, "picture")
    if tokenizer is not None:
        answer_ids(tokenizer, fields["answer"])
    return Example(places, fields["question"], fields["answer"], f"{path.name} line {number}")


def _opened(image: Image.Image | Path) -> Image.Image:
    return image if isinstance(image, Image.Image) else open_picture(image, "picture")


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value.encode().strip())
    except UnicodeEncodeError:  # a lone surrogate
        return False


def _digest_of(image: Image.Image | Path) -> bytes:
    """A hash of all that decides how a picture looks; one of nothing if it cannot be read."""
    digest = hashlib.sha256()
    try:
        digest.update(_bytes_of(image))
    except InputError:
        return digest.digest()  # it cannot be measured either, so nothing goes by this hash
    if isinstance(image, Image.Image):
        about = (image.getpalette(), image.info.get("transparency"), dict(image.getexif()))
        digest.update(repr(about).encode())
    return digest.digest()


def _bytes_of(image: Image.Image | Path) -> bytes:
    if isinstance(image, Image.Image):
        return f"{image.mode} {image.size}".encode() + image.tobytes()
    try:
        return Path(image).read_bytes()
    except OSError:
        return _opened(image).tobytes()  # raises, and says what is wrong
