"""Qwen2.5-VL's processor without torchvision: pictures, clips, both at once, and stock folders."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from vtfast.errors import InputError
from vtfast.processors import Qwen25VLProcessor
from vtfast.toy import qwen
from vtfast.toy.scene import Scene

IMAGE, VIDEO = "<vision_start><image><vision_end>", "<vision_start><video><vision_end>"


@pytest.fixture(scope="module")
def processor():
    return qwen.QWEN25.build_processor()


def picture(seed, size=(96, 96)):
    return Scene.from_seed(seed, size).picture()


def patches(processor, *pictures):
    return processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]


def test_pictures_of_several_sizes_get_a_placeholder_per_visual_token(processor):
    pictures = [picture(0), picture(1, (144, 96)), picture(2, (96, 120))]
    texts = [f"{IMAGE}{IMAGE} how", f"{IMAGE} how many"]
    inputs = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 16, 16], [1, 16, 24], [1, 20, 16]]
    assert torch.equal(inputs["pixel_values"], patches(processor, *pictures))
    is_visual = inputs["input_ids"] == processor.image_token_id
    assert is_visual.sum(1).tolist() == [64 + 96, 80]
    assert torch.equal(inputs["mm_token_type_ids"], is_visual.int())


def test_pictures_may_be_listed_per_prompt(processor):
    pictures, texts = [picture(0), picture(1, (144, 96))], [IMAGE, IMAGE]
    flat = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    nested = processor(
        images=[[p] for p in pictures], text=texts, padding=True, return_tensors="pt"
    )
    assert all(torch.equal(flat[name], nested[name]) for name in flat)


def test_text_alone_needs_no_picture(processor):
    inputs = processor(text="how many", return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask", "mm_token_type_ids"}


def test_a_clip_that_stands_still_has_the_patches_of_its_picture(processor):
    still = picture(3, (120, 96))
    inputs = processor(videos=[[still, still]], text=VIDEO, return_tensors="pt")
    assert torch.equal(inputs["pixel_values_videos"], patches(processor, still))
    assert inputs["video_grid_thw"].tolist() == [[1, 16, 20]]


def test_every_frame_of_a_clip_is_where_the_model_looks_for_it(processor):
    frames = [picture(seed, (108, 96)) for seed in range(4)]
    inputs = processor(videos=[frames], text=VIDEO, return_tensors="pt")
    assert inputs["video_grid_thw"].tolist() == [[2, 16, 18]]
    seen = inputs["pixel_values_videos"].view(2, 288, 3, 2, 36)  # step, place, channel, frame
    for number, frame in enumerate(frames):
        alone = patches(processor, frame).view(288, 3, 2, 36)[:, :, 0]
        assert torch.equal(seen[number // 2, :, :, number % 2], alone)


def test_a_clip_short_of_a_frame_repeats_its_last(processor):
    frames = [picture(seed) for seed in range(3)]
    short, full = (
        processor(videos=[clip], text=VIDEO, return_tensors="pt")["pixel_values_videos"]
        for clip in (frames, [*frames, frames[-1]])
    )
    assert torch.equal(short, full)


@pytest.mark.parametrize(
    "given",
    [
        lambda clip: [clip],
        lambda clip: clip,
        lambda clip: [[clip]],
        lambda clip: np.stack([np.asarray(frame) for frame in clip]),
    ],
    ids=["list of clips", "clip", "clips per prompt", "array"],
)
def test_a_clip_may_be_given_in_any_usual_form(processor, given):
    clip = [picture(0), picture(1)]
    inputs = processor(videos=given(clip), text=VIDEO, return_tensors="pt")
    wanted = processor(videos=[clip], text=VIDEO, return_tensors="pt")
    assert torch.equal(inputs["pixel_values_videos"], wanted["pixel_values_videos"])


@pytest.mark.parametrize(
    ("options", "seconds"), [({}, 1.0), ({"fps": 4.0}, 0.5)], ids=["default", "given"]
)
def test_frames_per_second_become_seconds_per_step(processor, options, seconds):
    clips = [[picture(0), picture(1)], [picture(2)]]
    inputs = processor(
        videos=clips, text=[VIDEO, VIDEO], padding=True, return_tensors="pt", **options
    )
    assert inputs["second_per_grid_ts"].tolist() == [seconds] * 2


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ("film.mp4", "'film.mp4' is a file; pass the frames"),
        ([[]], "without frames"),
        ([[picture(0), picture(0, (144, 96))]], r"shapes \[\(96, 96, 3\), \(96, 144, 3\)\]"),
    ],
    ids=["file", "empty", "sizes"],
)
def test_what_is_no_clip_is_refused(processor, videos, message):
    with pytest.raises(InputError, match=message):
        processor(videos=videos, text=VIDEO)


def test_a_picture_and_a_clip_in_a_padded_batch_are_understood_as_alone(processor):
    """Each sample has the logits it has alone, so placeholders, grids and kinds agree."""
    model = qwen.QWEN25.build_model(layers=2, seed=1).eval()
    still, clip = picture(0, (96, 120)), [picture(seed, (108, 96)) for seed in range(3)]
    texts = [f"{VIDEO} what {IMAGE} is the code ?", f"{IMAGE} how many cells are there ?"]
    calls = [
        {"images": [still], "videos": [clip], "text": texts[:1]},
        {"images": [still], "text": texts[1:]},
    ]
    together = processor(
        images=[still, still], videos=[clip], text=texts, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        batched = model(**together).logits[:, -1]
        alone = [model(**processor(**call, return_tensors="pt")).logits[0, -1] for call in calls]
    torch.testing.assert_close(batched, torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_transparent_frames_of_a_clip_are_on_white(processor):
    glass = picture(0).copy()
    glass.putalpha(picture(1).convert("L"))
    white = Image.new("RGB", glass.size, "white")
    white.paste(glass, mask=glass)
    clips = [
        processor(videos=[[frame] * 2], text=VIDEO, return_tensors="pt")["pixel_values_videos"]
        for frame in (glass, white)
    ]
    torch.testing.assert_close(*clips, rtol=0, atol=0.02)  # one step of 8 bits


def test_the_chat_template_takes_pictures_and_clips(processor):
    content = [
        {"type": "image", "image": picture(0)},
        {"type": "video", "video": [picture(1), picture(2)]},
        {"type": "text", "text": "how many"},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert torch.equal(inputs["pixel_values"], patches(processor, picture(0)))
    assert inputs["video_grid_thw"].tolist() == [[1, 16, 16]]


def test_answers_are_decoded_without_marks(processor):
    ids = processor.tokenizer(f"{IMAGE} A P 6</s>")["input_ids"]
    assert processor.batch_decode([ids], skip_special_tokens=True) == ["A P 6"]


def test_it_is_a_processor_to_transformers(processor):
    assert isinstance(processor, ProcessorMixin)


def test_a_saved_processor_loads_and_makes_the_same_inputs(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = Qwen25VLProcessor.from_pretrained(tmp_path, local_files_only=True)
    call = {
        "images": [Image.new("RGB", (300, 200), "pink")],
        "text": f"{IMAGE} how",
        "return_tensors": "pt",
    }
    saved, again = processor(**call), loaded(**call)
    assert all(torch.equal(saved[name], again[name]) for name in saved)
    assert loaded.chat_template == processor.chat_template


def test_the_folder_of_a_published_checkpoint_loads(tmp_path):
    """Its files as on the Hub: limits as min_pixels and max_pixels, no processor_config.json."""
    words = ["<pad>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "a"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", additional_special_tokens=words[1:5]
    ).save_pretrained(tmp_path)
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": 3136,
        "max_pixels": 50_000,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    template = "<|vision_start|><|image_pad|><|vision_end|> a"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    processor = Qwen25VLProcessor.from_pretrained(str(tmp_path), local_files_only=True)
    text = processor.apply_chat_template([{"role": "user", "content": []}])
    inputs = processor(images=[Image.new("RGB", (280, 280))], text=[text], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 14, 14]]  # 196 pixels a side, of 280
    assert inputs["input_ids"].tolist() == [[3, *[1] * 49, 4, 5]]
    assert inputs["mm_token_type_ids"].tolist() == [[0, *[1] * 49, 0, 0]]


def test_the_checkpoint_of_another_model_is_refused(tmp_path):
    """Qwen3-VL writes clips frame by frame: a stand-in of Qwen2.5-VL would prompt it wrongly."""
    settings = {"processor_class": "Qwen3VLProcessor", "patch_size": 16}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"has a Qwen3VLProcessor.*use vtfast\.processors\.load"):
        Qwen25VLProcessor.from_pretrained(tmp_path, local_files_only=True)
