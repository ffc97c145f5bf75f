"""The processor of every family without torchvision: prompts, picture tensors, and what it refuses.

Where torchvision is installed, the stock processors have to pass the same tests, but for clips.
"""

import json
from importlib.util import find_spec

import pytest
import torch
import transformers
from PIL import Image
from tiny_checkpoints import FILES, TOKENS, write_processor
from tiny_parts import IMAGE

from vtfast import processors
from vtfast.errors import InputError
from vtfast.toy.scene import Scene

# The stock processors of GLM-4V and InternVL hand tensors to NumPy in a way that it will drop.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

BY_GRID = [name for name in FILES if name.startswith(("qwen", "glm"))]
KINDS = {
    "qwen2": "qwen2_vl",
    "qwen": "qwen2_5_vl",
    "qwen3": "qwen3_vl",
    "qwen3-moe": "qwen3_vl_moe",
    "qwen3.5": "qwen3_5",
    "qwen3.5-moe": "qwen3_5_moe",
    **{name: name.replace("-", "_") for name in FILES if not name.startswith("qwen")},
}
NO_CLIPS = [name for name in FILES if FILES[name].clips]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads the processor of a family from a folder."""
    # SmolVLM's class asks for this package, which it uses for clips only.
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)

    def read(name):
        return processors.load(write_processor(name, tmp_path), local_files_only=True)

    return read


@pytest.fixture(autouse=True)
def _pillow_classes(request):
    """transformers 5.17 does not give out two of its image processors on Pillow."""
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    kind = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}.get(name)
    hidden = kind and getattr(getattr(transformers, f"{kind}ImageProcessorPil"), "is_dummy", False)
    if hidden:
        pytest.skip(f"transformers {transformers.__version__} needs torchvision for {kind}")


def picture(seed=0, size=(110, 80)):
    return Scene.from_seed(seed, (96, 96)).picture().resize(size)


def written(processor, pictures):
    parts = [{"type": "image"}] * pictures + [{"type": "text", "text": "how many"}]
    return processor.apply_chat_template([{"role": "user", "content": parts}])


@pytest.mark.parametrize("name", FILES)
def test_a_picture_gets_a_placeholder_per_visual_token(load, name):
    processor = load(name)
    assert processor.image_token_id == IMAGE
    inputs = processor(images=[picture()], text=[written(processor, 1)], return_tensors="pt")
    assert (inputs["input_ids"] == IMAGE).sum() == TOKENS[name]
    assert inputs["pixel_values"].dtype == torch.float32


@pytest.mark.parametrize("name", FILES)
def test_pictures_are_listed_by_prompt(load, name):
    """Of several pictures in a prompt LLaVA-OneVision shows each whole, without tiles."""
    processor = load(name)
    several = 6 * 6 + 1 if name == "llava-onevision" else TOKENS[name]
    inputs = processor(
        images=[[picture(0)], [picture(1), picture(2)]],
        text=[written(processor, 1), written(processor, 2)],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    counts = (inputs["input_ids"] == IMAGE).sum(1).tolist()
    assert counts == [TOKENS[name], 2 * several]


@pytest.mark.parametrize("name", FILES)
def test_text_alone_needs_no_picture(load, name):
    inputs = load(name)(text=["how many"], return_tensors="pt")
    assert set(inputs) <= {"input_ids", "attention_mask", "mm_token_type_ids"}


@pytest.mark.parametrize("name", BY_GRID)
def test_models_with_positions_by_grid_are_told_the_kind_of_each_token(load, name):
    processor = load(name)
    inputs = processor(images=[picture()], text=[written(processor, 1)], return_tensors="pt")
    assert torch.equal(inputs["mm_token_type_ids"], (inputs["input_ids"] == IMAGE).long())
    assert inputs["image_grid_thw"].prod() == 4 * TOKENS[name]


def test_rows_of_a_pixtral_picture_are_told_apart(load):
    processor = load("mistral3")
    inputs = processor(images=[picture(0, (44, 20))], text=["[IMG]"], return_tensors="pt")
    row, broken, end = [IMAGE] * 6, [IMAGE + 1], [IMAGE + 2]
    assert inputs["input_ids"].tolist() == [row + broken + row + broken + row + end]
    assert inputs["image_sizes"].tolist() == [[24, 48]]


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision reads clips")
@pytest.mark.parametrize("name", NO_CLIPS)
def test_clips_are_refused_with_what_to_install(load, name):
    processor = load(name)
    token = getattr(processor, "video_token", "")
    with pytest.raises(InputError, match=r"clips only with torchvision; install it \(pip install"):
        processor(videos=[[picture(), picture()]], text=[f"{token}a"])


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision reads clips")
@pytest.mark.parametrize(("name", "told"), [("qwen2", False), ("qwen", True)])
def test_only_a_model_that_takes_seconds_is_told_of_them(load, name, told):
    """`generate` of Qwen2-VL refuses an argument that it does not use."""
    processor = load(name)
    text = "<|vision_start|><|video_pad|><|vision_end|>"
    inputs = processor(videos=[[picture(), picture()]], text=[text], return_tensors="pt")
    assert inputs["video_grid_thw"].tolist() == [[1, 6, 8]]
    assert ("second_per_grid_ts" in inputs) is told


@pytest.mark.parametrize("name", FILES)
def test_a_saved_processor_makes_the_same_inputs(load, name, tmp_path):
    processor = load(name)
    processor.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(json.dumps({"model_type": KINDS[name]}))
    again = processors.load(tmp_path / "saved", local_files_only=True)
    assert again.chat_template == processor.chat_template
    call = {"images": [picture()], "text": [written(processor, 1)], "return_tensors": "pt"}
    first, second = processor(**call), again(**call)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["qwen3", "mistral3"])
def test_a_processor_is_found_by_the_model_where_no_file_names_it(load, name, tmp_path):
    own = FILES[name].processor
    expected = type(load(name)).__name__
    for file in tmp_path.glob("*processor_config.json"):
        file.write_text(file.read_text().replace(f'"processor_class": "{own}"', '"unused": 1'))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": KINDS[name]}))
    assert type(processors.load(tmp_path, local_files_only=True)).__name__ == expected == own


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises((ImportError, ValueError), match=r"pip install num2words|torchvision"):
        processors.load(write_processor("smolvlm", tmp_path), local_files_only=True)


def test_a_transparent_picture_is_read(load):
    processor = load("qwen3")
    glass = Image.new("RGBA", (110, 80), (255, 0, 0, 128))
    inputs = processor(images=[glass], text=["<|image_pad|>"], return_tensors="pt")
    assert (inputs["input_ids"] == IMAGE).sum() == TOKENS["qwen3"]
