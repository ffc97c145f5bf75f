"""The vocabulary of questions and answers about scenes, and a word-level tokenizer for it."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from vtfast.toy.scene import CODE_LENGTH, COLOURS, GLYPHS, SHAPES

LONGEST_ANSWER = CODE_LENGTH + 1  # words and </s>

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
_QUESTION_WORDS = (
    *("USER:", "ASSISTANT:", "?", ".", "what", "which", "how", "many", "colour", "is", "the"),
    *("background", "shape", "main", "digit", "in", "cell", "cells", "are", "there", "read"),
    "code",
)
WORDS = (*_SPECIAL, *_QUESTION_WORDS, *COLOURS, *SHAPES, *GLYPHS)
WORD_IDS = {word: i for i, word in enumerate(WORDS)}
PAD, BOS, EOS, IMAGE = (WORD_IDS[word] for word in ("<pad>", "<s>", "</s>", "<image>"))


def chat_template(parts: dict[str, str]) -> str:
    """A chat template, `USER: … ASSISTANT:`, with a placeholder for each picture or video.

    `parts` maps a content type, as "image", to its placeholder, which the processor replaces.
    """
    branches = "".join(
        f"{{% {'elif' if i else 'if'} part['type'] == '{kind}' %}}{text}\n"
        for i, (kind, text) in enumerate(parts.items())
    )
    return (
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}USER: "
        "{% for part in message['content'] %}"
        + branches
        + "{% else %}{{ part['text'] }} {% endif %}"
        "{% endfor %}"
        "{% else %}ASSISTANT: "
        "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}</s>{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )


def build_tokenizer(**more: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over `WORDS`, padding left.

    `more` names further special tokens, as `video_token="<video>"`; their ids follow `WORDS`.
    """
    ids = WORD_IDS | {word: len(WORDS) + i for i, word in enumerate(more.values())}
    words = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>", **more},
        padding_side="left",
    )
