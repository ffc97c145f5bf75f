"""LLaVA's data format: conversations about pictures, and where `<image>` stands in a prompt."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from repository import ROOT

from vtfast import toy
from vtfast.errors import InputError
from vtfast.information import Dataset, Example, read_examples
from vtfast.inputs.chats import chat
from vtfast.inputs.data_files import BadLine
from vtfast.toy.scene import Scene

CODE = "read the code ."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(2):
        Scene.from_seed(number).picture().save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture(scope="module", params=["llava-small", "qwen"])
def processor(request: pytest.FixtureRequest):
    return toy.load(request.param)[1]


def said(*texts: str) -> list[dict[str, str]]:
    """Turns of a human and a gpt."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def about(*texts: str, image: object = "0.png", **other: object) -> dict[str, object]:
    return {"id": "0007", "image": image, "conversations": said(*texts), **other}


def read(place: Path, /, *entries: object, **how: object) -> tuple[list[Example], list[BadLine]]:
    (place / "data.json").write_text(json.dumps(entries, indent=2))
    return read_examples(place / "data.json", **how)


def prompts(processor, examples: list[Example]) -> list[str]:
    """What the processor is told, for each example."""
    return [
        chat(processor, example.question, len(example.images), context=example.context)
        for example in examples
    ]


@pytest.mark.parametrize(
    "text",
    [f"<image>\n{CODE}", f"{CODE}\n<image>", CODE, f" <image> {CODE}"],
    ids=["before", "after", "nowhere", "in spaces"],
)
def test_llavas_format_reads_as_the_plain_one(folder: Path, processor, text: str) -> None:
    """Only a picture after the text is another prompt, where the template keeps the order."""
    plain, _ = read(folder, {"image": "0.png", "question": CODE, "answer": "K 1"})
    found, bad = read(folder, about(text, "K 1"))
    assert bad == []
    assert (found[0].images, found[0].answer) == (plain[0].images, plain[0].answer)
    (expected,), (got,) = prompts(processor, plain), prompts(processor, found)
    if text.endswith("<image>"):
        image = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": CODE}, {"type": "image"}]}],
            add_generation_prompt=True,
        )
        assert got == image != expected
    else:
        assert got == expected


def test_an_array_of_plain_objects_is_read_too(folder: Path) -> None:
    found, bad = read(folder, {"image": "0.png", "question": CODE, "answer": "K 1"})
    assert bad == []
    assert [(e.name, e.question) for e in found] == [("data.json entry 1", CODE)]


def test_conversations_may_stand_in_json_lines(folder: Path) -> None:
    line = json.dumps(about(f"<image>\n{CODE}", "K 1"))
    (folder / "data.jsonl").write_text(f"{line}\n{line}\n")
    found, bad = read_examples(folder / "data.jsonl")
    assert bad == []
    assert [e.name for e in found] == ["data.jsonl line 1, turn 2", "data.jsonl line 2, turn 2"]


def test_every_answer_is_an_example_with_the_turns_before_it(folder: Path, processor) -> None:
    found, bad = read(folder, about(f"<image>\n{CODE}", "K 1", "and the shape ?", "circle"))
    assert bad == []
    assert [(e.question, e.answer) for e in found] == [
        (f"<image>\n{CODE}", "K 1"),
        ("and the shape ?", "circle"),
    ]
    assert [e.name for e in found] == [f"data.json entry 1 (id 0007), turn {n}" for n in (2, 4)]
    first, second = prompts(processor, found)
    told = [{"type": "image"}, {"type": "text", "text": CODE}]
    messages = [
        {"role": "user", "content": told},
        {"role": "assistant", "content": [{"type": "text", "text": "K 1"}]},
        {"role": "user", "content": [{"type": "text", "text": "and the shape ?"}]},
    ]
    assert first == processor.apply_chat_template(messages[:1], add_generation_prompt=True)
    assert second == processor.apply_chat_template(messages, add_generation_prompt=True)


def test_without_a_template_turns_are_written_as_llava_was_trained() -> None:
    processor = toy.load("llava-small")[1]
    processor.chat_template = None
    context = (("system", "Be brief."), ("user", f"<image>\n{CODE}"), ("assistant", "K 1"))
    assert chat(processor, "and <image> ?", 2, context=context) == (
        f"Be brief. USER: <image>\n{CODE} ASSISTANT: K 1 USER: <image>\nand ? ASSISTANT:"
    )


def test_an_answer_has_the_pictures_that_stand_before_it(folder: Path) -> None:
    texts = (f"<image>\n{CODE}", "K 1", "<image>\nand here ?", "M 2")
    found, bad = read(folder, about(*texts, image=["0.png", "1.png"]))
    assert bad == []
    assert [[image.name for image in e.images] for e in found] == [["0.png"], ["0.png", "1.png"]]


def test_an_answer_before_any_picture_is_left_out(folder: Path) -> None:
    found, bad = read(folder, about("hello ?", "yes", f"<image>\n{CODE}", "K 1"))
    assert bad == []
    assert [e.answer for e in found] == ["K 1"]


def test_pictures_stand_in_the_text_where_their_marks_do(folder: Path) -> None:
    processor = toy.load("qwen")[1]
    found, _ = read(folder, about("<image> or <image> ?", "first", image=["0.png", "1.png"]))
    (prompt,) = prompts(processor, found)
    image = "<vision_start><image><vision_end>\n"
    assert prompt == f"USER: {image}or {image}? ASSISTANT:"


def test_other_names_of_the_same_fields_are_read(folder: Path) -> None:
    turns = [
        {"role": "system", "content": "be brief ."},
        {"role": "user", "content": f"<image>{CODE}"},
        {"role": "assistant", "content": "K 1"},
    ]
    found, bad = read(folder, {"images": ["0.png"], "messages": turns})
    assert bad == []
    assert found[0].context == (("system", "be brief ."),)
    assert (found[0].question, found[0].answer) == (f"<image>{CODE}", "K 1")


def test_pictures_are_relative_to_the_folder_that_is_given(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    found, bad = read(tmp_path / "annotations", about(CODE, "K 1"), folder=folder)
    assert bad == []
    assert found[0].images == (folder / "0.png",)


def test_reading_stops_after_as_many_examples_as_asked_for(folder: Path) -> None:
    entries = [about(CODE, "K 1", CODE, "K 2"), about(CODE, "K 3", image="gone.png")]
    found, bad = read(folder, *entries, most=1)
    assert ([e.answer for e in found], bad) == (["K 1"], [])


def test_an_earlier_turn_changes_the_fingerprint(folder: Path, processor) -> None:
    kinds = set()
    for before in ("K 1", "K 2"):
        found, _ = read(folder, about(CODE, before, "and ?", "M"))
        kinds.add(Dataset(processor, found[1:], "code").fingerprint())
    assert len(kinds) == 2


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"conversations": said(CODE, "K 1")}, 'it has no picture: "image" is missing or empty'),
        (about(CODE, "K 1", image=None), 'it has no picture: "image" is missing or empty'),
        ({"video": "a.mp4", "conversations": said(CODE, "K 1")}, "it has a video and no picture"),
        (about(f"<image><image>{CODE}", "K 1"), "the text has 2 <image> and there is 1 picture; "),
        (about(f"<image>{CODE}", "K 1", image=["0.png", "1.png"]), "1 <image> and there are 2 pic"),
        (about(CODE), "its conversation has no answer after a picture"),
        ({"image": "0.png", "conversations": said(CODE, "K")[::-1]}, "turn 1 is from 'gpt'; expec"),
        (
            {"image": "0.png", "conversations": [*said(CODE)] * 2},
            "turn 2 is from 'human'; expected",
        ),
        (about(CODE, " "), "turn 2 is not text"),
        ({"image": "0.png", "conversations": "read"}, '"conversations" is not a list of turns'),
        (about(CODE, "K <image>", image=["0.png"]), "turn 2 has <image> in an answer"),
        (
            about(CODE, "K 1", image="https://a.org/0.png"),
            "https://a.org/0.png: expected a file; d",
        ),
        (about(CODE, "K 1", image="gone.png"), "gone.png: there is no such file"),
        ([1], "it is not a JSON object"),
    ],
    ids=[
        *("text only", "null", "video", "two marks", "one mark", "no answer", "begins with gpt"),
        *("two humans", "empty", "no turns", "marked answer", "url", "missing file", "no object"),
    ],
)
def test_an_entry_that_cannot_be_used_is_reported(folder: Path, entry: object, reason: str) -> None:
    found, bad = read(folder, about(CODE, "K 1"), entry)
    assert len(found) == 1
    assert [one.number for one in bad] == [2]
    assert bad[0].where.startswith("entry 2")
    assert reason in bad[0].reason


def test_an_array_that_is_cut_off_is_refused_as_a_whole(folder: Path) -> None:
    text = json.dumps([about(CODE, "K 1")] * 3, indent=2)
    (folder / "cut.json").write_text(text[: len(text) // 2])
    with pytest.raises(
        InputError, match=r"cannot read \S+cut\.json: the array is not JSON \(.*line"
    ):
        read_examples(folder / "cut.json")


def test_an_empty_array_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="is empty; a line is like"):
        read(folder)


def test_the_placeholder_of_a_processor_in_a_text_is_refused(folder: Path) -> None:
    processor = toy.load("qwen")[1]
    found = [Example(folder / "0.png", "what is <video> ?", "1", "line 3")]
    with pytest.raises(
        InputError, match=r"^line 3: the text has <video> in it, which stands for a"
    ):
        Dataset(processor, found, "code").batch([0])


def test_a_batch_of_conversations_has_every_picture_where_it_belongs(
    folder: Path, processor
) -> None:
    texts = (f"<image>\n{CODE}", "K 1", "<image>\nand here ?", "M 2")
    found, _ = read(folder, about(*texts, image=["0.png", "1.png"]))
    inputs = Dataset(processor, found, "code").batch([0, 1]).inputs
    each = [int((row == processor.image_token_id).sum()) for row in inputs["input_ids"]]
    assert each[1] == 2 * each[0] > 0


def test_the_documented_forms_are_read_as_documented(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    plain, conversations = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for name in ("cat.png", "playground/data/coco/train2017/000000033471.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (96, 96)).save(folder / name)
    monkeypatch.chdir(folder)
    (folder / "plain.jsonl").write_text(plain)
    (folder / "llava_v1_5_mix665k.json").write_text(conversations)
    names = {"processor": toy.load("llava-small")[1]}
    names["processor"].tokenizer.unk_token = None  # its few words are none of these
    exec(code, names)
    assert names["bad"] == []
    assert [e.answer for e in names["dataset"].examples] == ["White and red.", "Yes.", "cat"]
    assert read_examples("plain.jsonl")[0][0].answer == "cat"


# Examples made in Python


def test_one_picture_may_stand_for_a_tuple_of_one(folder: Path) -> None:
    path, opened = folder / "0.png", Image.new("RGB", (9, 9))
    for images in (path, str(path), [path], (str(path),)):
        assert Example(images, CODE, "1").images == (path,)
    assert Example(opened, CODE, "1").images == (opened,)


@pytest.mark.parametrize(
    ("question", "answer", "says"),
    [
        ("<image> <image> ?", "1", "the text has 2 <image> and there is 1 picture; write <image> "),
        ("why ?", "an <image>", "the answer has <image> in it"),
    ],
)
def test_marks_that_do_not_fit_are_refused_at_once(question: str, answer: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Example(Image.new("RGB", (9, 9)), question, answer)


def test_a_data_set_warns_in_one_line_of_frames_that_are_left_out(folder: Path, processor) -> None:
    frames = [Image.new("RGB", (96, 96), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    examples = [Example(folder / name, CODE, "1") for name in ("0.png", "a.gif")]
    with pytest.warns(UserWarning, match=r"^code: \S+a\.gif has 2 frames; only the first is used$"):
        data = Dataset(processor, examples, "code")
    assert data.pictures(1)[0].getpixel((0, 0)) == pytest.approx((255, 0, 0), abs=2)


def test_the_fingerprint_of_an_opened_picture_is_of_what_the_model_sees(processor) -> None:
    """Two pictures of equal numbers and other palettes are two pictures."""
    kinds = set()
    for colour in ((255, 0, 0), (0, 0, 255)):
        picture = Image.new("P", (96, 96))
        picture.putpalette(colour)
        kinds.add(Dataset(processor, [Example(picture, CODE, "1")], "code").fingerprint())
    assert len(kinds) == 2
