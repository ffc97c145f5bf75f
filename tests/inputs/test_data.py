"""Questions from a file: what a line may be, what is wrong with it, and what a batch holds."""

import json

import pytest
from PIL import Image

from vtfast import toy
from vtfast.errors import InputError
from vtfast.information import Dataset, Example, answer_ids, read_examples
from vtfast.toy.scene import Scene
from vtfast.toy.words import EOS, WORD_IDS, build_tokenizer


@pytest.fixture
def folder(tmp_path):
    Scene.from_seed(0).picture().save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    (tmp_path / "sub").mkdir()
    Scene.from_seed(1).picture().save(tmp_path / "sub" / "b.png")
    return tmp_path


@pytest.fixture(scope="module")
def processor():
    return toy.load("llava-small")[1]


def write(folder, *lines):
    path = folder / "data.jsonl"
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + "\n")
    return path


GOOD = {"image": "a.png", "question": "read the code .", "answer": "K 1"}


def test_a_line_is_a_question_about_pictures_beside_the_file(folder):
    two = {**GOOD, "image": ["a.png", "sub/b.png"], "source": "left alone"}
    examples, bad = read_examples(write(folder, GOOD, "", two))
    assert bad == []
    assert [e.name for e in examples] == ["data.jsonl line 1", "data.jsonl line 3"]
    assert examples[1].images == (folder / "a.png", folder / "sub" / "b.png")
    assert (examples[0].question, examples[0].answer) == ("read the code .", "K 1")


def test_a_table_is_refused_with_what_to_write(tmp_path):
    (tmp_path / "mine.csv").write_text("image,question,answer\na.png,what ?,cat\n")
    with pytest.raises(InputError, match=r"mine.csv is a table; write a JSON object per line"):
        read_examples(tmp_path / "mine.csv")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{'a': 1}", "not JSON (Expecting property name enclosed in double quotes at character 2)"),
        ("[1]", "not a JSON object"),
        ({**GOOD, "image": 7}, '"image" is not a path or a list of paths'),
        ({**GOOD, "image": []}, 'it has no picture: "image" is missing or empty'),
        ({"image": "a.png", "answer": "x"}, '"question" is missing'),
        ({**GOOD, "answer": " "}, '"answer" is not text'),
        ({**GOOD, "image": "none.png"}, "none.png: there is no such file"),
        ({**GOOD, "image": "broken.png"}, "broken.png"),
        ({**GOOD, "answer": "  \u200b"}, "has no token; pass one the tokenizer knows"),
        ({**GOOD, "question": "why \ud800?"}, '"question" is not text'),
        ("[" * 100_000, "Python cannot read this JSON"),
        ('{"a": ' + "9" * 5000 + "}", "Python cannot read this JSON"),
    ],
    ids=[
        *("json", "object", "image", "no image", "question", "answer", "missing", "broken"),
        *("empty", "half a character", "deep", "long number"),
    ],
)
def test_a_bad_line_is_reported_with_its_number_and_the_others_are_read(folder, line, reason):
    class KnowsOneAnswer:
        def encode(self, text, add_special_tokens):
            return [1] if text == GOOD["answer"] else []

    examples, bad = read_examples(write(folder, GOOD, line, GOOD), KnowsOneAnswer())
    assert len(examples) == 2
    assert [one.number for one in bad] == [2]
    assert reason in bad[0].reason


def test_lines_end_where_json_lines_end_and_a_byte_order_mark_is_no_text(folder):
    """U+2028 and others end lines for Python, and may stand in the text of JSON."""
    text = json.dumps({**GOOD, "question": "read\u2028the\x85code ."}, ensure_ascii=False)
    (folder / "data.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{text}\r\n{text}\r\n".encode())
    examples, bad = read_examples(folder / "data.jsonl")
    assert bad == []
    assert [e.question for e in examples] == ["read\u2028the\x85code ."] * 2


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\n\n", "is empty; a line is like"), (b"\xff\xfe", "it is not UTF-8 text")],
)
def test_a_file_without_lines_is_refused(folder, content, says):
    (folder / "data.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_examples(folder / "data.jsonl")


def test_a_file_that_is_not_there_is_refused(folder):
    with pytest.raises(InputError, match=r"cannot read .*: No such file"):
        read_examples(folder / "nothing.jsonl")


def test_a_batch_is_what_the_processor_makes_of_the_prompts(processor):
    pictures, questions, answers = toy.scenes(2, 0, "code")
    pairs = zip(pictures, questions, answers, strict=True)
    data = Dataset(processor, [Example((p,), q, a) for p, q, a in pairs], "code", ends=True)
    batch = data.batch([1, 0])
    texts = [toy.prompt(processor, questions[i]) for i in (1, 0)]
    assert processor.batch_decode(batch.inputs["input_ids"]) == processor.batch_decode(
        processor(text=texts, images=[[pictures[1]], [pictures[0]]])["input_ids"]
    )
    words = [WORD_IDS[word] for word in answers[1].split()]
    assert (batch.answers[0], batch.lengths) == ([*words, EOS], [3, 3])


def test_the_fingerprint_sees_answers_and_pictures(processor):
    picture = Image.new("RGB", (96, 96))
    other = Image.new("RGB", (96, 96), "red")
    kinds = [
        Dataset(processor, [Example((p,), "read the code .", a)], "code", ends=e).fingerprint()
        for p, a, e in ((picture, "1", 0), (picture, "2", 0), (other, "1", 0), (picture, "1", 1))
    ]
    assert len(set(kinds)) == 4


def test_the_fingerprint_sees_what_is_in_a_file_and_not_where_it_is(processor, folder):
    def made(path):
        return Dataset(processor, [Example((path,), "read the code .", "1")], "code").fingerprint()

    first, other = folder / "a.png", folder / "sub" / "b.png"
    assert made(first) != made(other)
    other.write_bytes(first.read_bytes())
    assert made(first) == made(other)
    with pytest.raises(InputError, match=r"picture .*gone\.png: there is no such file"):
        made(folder / "gone.png")


def test_the_example_that_a_processor_cannot_take_is_named(folder):
    Image.new("RGB", (2000, 3)).save(folder / "thin.png")
    examples, _ = read_examples(write(folder, GOOD, GOOD, {**GOOD, "image": "thin.png"}))
    data = Dataset(toy.load("qwen")[1], examples, "code")
    with pytest.raises(InputError, match=r"cannot take data\.jsonl line 3: absolute aspect ratio"):
        data.batch([0, 1, 2])


@pytest.mark.parametrize(
    ("examples", "says"),
    [
        ([], "code: there is no example; pass at least one"),
        ([Example((), "why ?", "1", "line 4")], "line 4 has no picture; leave it out"),
        ([Example((Image.new("RGB", (9, 9)),), "why ?", "", "line 5")], "line 5: the answer ''"),
    ],
    ids=["none", "no picture", "no answer"],
)
def test_what_cannot_be_asked_is_refused_at_once(processor, examples, says):
    with pytest.raises(InputError, match=says):
        Dataset(processor, examples, "code")


def test_an_answer_is_encoded_without_special_tokens():
    assert answer_ids(build_tokenizer(), "K 1") == [WORD_IDS["K"], WORD_IDS["1"]]
