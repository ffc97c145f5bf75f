"""Questions about pictures with their true answers, encoded in batches."""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image

from vtfast.errors import InputError
from vtfast.inputs.chats import MARK, Turn, chat, check_marks
from vtfast.inputs.pictures import Source, first_frames, open_picture, picture_source


@dataclass(frozen=True)
class Example:
    """A question about pictures, and its true answer.

    Attributes:
        images: files (paths), bytes of picture files, data URLs, or opened pictures, as a tuple or
            list; a single one is taken as a tuple of one.
        question: `<image>` marks where a picture stands; without it the pictures come first.
        answer: the text that a right answer has.
        name: what messages call the example, such as "data.jsonl line 3".
        context: the turns before the question, in order: ("system" | "user" | "assistant", text).

    Raises InputError for an image of another kind, such as a URL, an array or a tensor, and for
    marks that are not as many as the pictures.
    """

    images: tuple[Source, ...]
    question: str
    answer: str
    name: str = "an example"
    context: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        given: Any = self.images
        several = given if isinstance(given, tuple | list) else (given,)
        object.__setattr__(self, "images", tuple(map(picture_source, several)))
        check_marks([*(text for _, text in self.context), self.question], len(self.images))
        if MARK in self.answer:
            raise InputError(
                f"the answer has {MARK} in it, which stands for a picture; leave it out"
            )


_WRITTEN = [field.name for field in fields(Example) if field.name not in ("images", "name")]


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

    Warns, in one line, of pictures of which only the first frame is taken.

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
        if note := first_frames(image for example in self.examples for image in example.images):
            warnings.warn(f"{task}: {note}", stacklevel=2)

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
        """The pictures of an example, as `open_picture` reads them: upright and RGB."""
        return [open_picture(image, "picture") for image in self.examples[index].images]

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
            digest.update(json.dumps([e.question, e.answer, *e.context]).encode())
            for image in e.images:
                digest.update(_bytes_of(image))
        return digest.hexdigest()[:16]

    def _encoded(self, indices: Sequence[int]) -> Any:
        """What the processor makes of some examples."""
        chosen = [self.examples[i] for i in indices]
        texts = [self._prompt(example) for example in chosen]
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

    def _prompt(self, example: Example) -> str:
        try:
            return chat(
                self.processor, example.question, len(example.images), context=example.context
            )
        except InputError as error:
            raise InputError(f"{example.name}: {error}") from None


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


def _bytes_of(image: Source) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        try:
            return image.read_bytes()
        except OSError:
            pass  # open_picture says what is wrong
    read = open_picture(image, "picture")
    return f"{read.mode} {read.size}".encode() + read.tobytes()


def _digest_of(image: Source) -> bytes:
    """A hash of what a picture shows; one of nothing if it cannot be read."""
    digest = hashlib.sha256()
    with suppress(InputError):  # then it cannot be measured either, and nothing goes by this hash
        digest.update(_bytes_of(image))
    return digest.digest()
