"""A question about pictures, and the turns before it, in the words of a processor's chat template.

`<image>` in a text marks where a picture stands, as in LLaVA's data; without it all pictures come
before the first question. A template may have an order of its own: LLaVA-1.5's puts the pictures of
a turn before its text.
"""

from collections.abc import Sequence
from typing import Any

from vtfast.errors import InputError

MARK = "<image>"

Turn = tuple[str, str]  # "system", "user" or "assistant", and what is said
_Part = dict[str, str]


def check_marks(texts: Sequence[str], pictures: int) -> None:
    """Raise InputError unless `<image>` occurs in the texts never, or once for every picture."""
    marks = sum(text.count(MARK) for text in texts)
    if marks not in (0, pictures):
        raise InputError(
            f"the text has {marks} {MARK} and there {'is' if pictures == 1 else 'are'} {pictures} "
            f"picture{'s' * (pictures != 1)}; write {MARK} once for each, or leave it out: the "
            "pictures then come first"
        )


def chat(
    processor: Any,
    question: str,
    pictures: int,
    *,
    clip: bool = False,
    context: Sequence[Turn] = (),
) -> str:
    """The prompt that asks a question about pictures and a video, in the processor's chat template.

    A processor without a template gets LLaVA-1.5's plain form, `USER: <image>\\n… ASSISTANT:`.

    Args:
        pictures: how many.
        clip: whether there is a video; it comes before the question's text.
        context: turns before the question, in order.

    Raises InputError for marks that are not as many as the pictures, for a text that holds the
    processor's own placeholder of a picture or video, and for a processor that takes video and has
    no template: its model was trained on another form than LLaVA's.
    """
    turns = [*context, ("user", question)]
    texts = [text for _, text in turns]
    check_marks(texts, pictures)
    _check_placeholders(processor, texts)
    messages = [(role, _parts(text)) for role, text in turns]
    images: list[_Part] = [{"type": "image"} for _ in range(pictures)]
    if not any(MARK in text for text in texts):
        first = next(parts for role, parts in messages if role == "user")
        first[:0] = images
    if clip:
        last = messages[-1][1]
        after = [i for i, part in enumerate(last, 1) if part["type"] == "image"]
        last.insert(after[-1] if after else 0, {"type": "video"})
    if processor.chat_template:
        told = [{"role": role, "content": parts} for role, parts in messages]
        written: str = processor.apply_chat_template(told, add_generation_prompt=True)
        return written
    if getattr(processor, "video_token", None):
        raise InputError(
            "the processor has no chat template, and vtfast knows a plain one for LLaVA only; "
            "add the chat_template.jinja of the original model"
        )
    return " ".join([*(_plain(processor, *message) for message in messages), "ASSISTANT:"])


def _parts(text: str) -> list[_Part]:
    """A text cut at its marks, without the white space around them."""
    if MARK not in text:
        return [{"type": "text", "text": text}]
    parts: list[_Part] = []
    for number, piece in enumerate(text.split(MARK)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": piece.strip()}] if piece.strip() else []
    return parts


def _plain(processor: Any, role: str, parts: Sequence[_Part]) -> str:
    """A turn as LLaVA-1.5 was trained on it: pictures first."""
    images = sum(part["type"] == "image" for part in parts)
    said = " ".join(part["text"] for part in parts if part["type"] == "text")
    name = "" if role == "system" else f"{role.upper()}: "
    return name + f"{processor.image_token}\n" * images + said


def _check_placeholders(processor: Any, texts: Sequence[str]) -> None:
    for kind in ("image", "video"):
        placeholder = getattr(processor, f"{kind}_token", None)
        if placeholder in (None, MARK):
            continue
        if any(placeholder in text for text in texts):
            raise InputError(
                f"the text has {placeholder} in it, which stands for a {kind}; leave it out, or "
                f"write {MARK} where a picture stands"
            )
