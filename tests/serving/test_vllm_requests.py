"""Requests that vLLM must refuse before anything is cached, and the ones that come after them."""

import pytest
import torch
from vllm_engines import (
    NEW_TOKENS,
    Request,
    ask,
    check_equal,
    checkpoint,
    engine,
    of_patch,
    requests,
)

from vtfast.toy.scene import Scene

PICTURE = Scene.from_seed(5).picture()
QUESTION = "USER: <image>\nread the code . ASSISTANT:"


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = checkpoint("llava", tmp_path_factory.getbasetemp())
    limits = {"limit_mm_per_prompt": {"image": 70}, "enable_mm_embeds": True}
    with engine(folder, {"keep": 0.5}, **limits) as made:
        yield made


def generate(made, prompt, **more):
    from vllm import SamplingParams

    given = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
    return made.generate([{"prompt": prompt, **more}], given, use_tqdm=False)[0]


@pytest.mark.parametrize("keep", [0, -1, 1.5, 2.5, float("nan"), "half", True, [0.5]])
def test_a_bad_keep_is_refused_and_the_picture_can_be_sent_again(llava, keep):
    given = {"multi_modal_data": {"image": PICTURE}}
    with pytest.raises(ValueError, match="vtfast_keep="):
        generate(llava, QUESTION, **given, mm_processor_kwargs={"vtfast_keep": keep})
    assert generate(llava, QUESTION, **given).outputs[0].token_ids


def test_a_misspelt_name_is_refused_and_the_picture_can_be_sent_again(llava):
    given = {"multi_modal_data": {"image": PICTURE}}
    with pytest.raises(ValueError, match="vtfast_kep is unknown; what a request can set is vtf"):
        generate(llava, QUESTION, **given, mm_processor_kwargs={"vtfast_kep": 0.5})
    assert generate(llava, QUESTION, **given).outputs[0].token_ids


def test_a_prompt_that_ends_in_a_picture_is_refused(llava):
    given = {"multi_modal_data": {"image": Scene.from_seed(6).picture()}}
    with pytest.raises(ValueError, match="ends in a picture"):
        generate(llava, "USER: read the code <image>", **given)
    assert generate(llava, QUESTION, **given).outputs[0].token_ids
    whole = {"mm_processor_kwargs": {"vtfast_keep": 1.0}}
    assert generate(llava, "USER: read the code <image>", **given, **whole).outputs[0].token_ids


@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_embeddings_are_refused(llava, keep):
    given = {"multi_modal_data": {"image": torch.zeros(1, 64, 128)}}
    with pytest.raises(ValueError, match="came as embeddings"):
        generate(llava, QUESTION, **given, mm_processor_kwargs={"vtfast_keep": keep})
    assert generate(llava, QUESTION, multi_modal_data={"image": PICTURE}).outputs[0].token_ids


def test_a_prompt_that_reaches_beyond_the_rotary_table_is_refused(llava):
    """Its tokens keep their places, so that 40 pictures reach as far as without pruning."""
    prompt = f"USER: {'<image>' * 40}\nread the code . ASSISTANT:"
    pictures = {"multi_modal_data": {"image": [PICTURE] * 40}}
    with pytest.raises(ValueError, match="has places for 2048"):
        generate(llava, prompt, **pictures, mm_processor_kwargs={"vtfast_keep": 2})
    fewer = {"multi_modal_data": {"image": [PICTURE] * 20}}
    prompt = f"USER: {'<image>' * 20}\nread the code . ASSISTANT:"
    made = generate(llava, prompt, **fewer, mm_processor_kwargs={"vtfast_keep": 2})
    assert len(made.prompt_token_ids) < 70


def test_names_that_a_client_gives_its_pictures_do_not_mix_plans(llava):
    asked, tokens = requests("llava")[0], {0.5: 32, 0.25: 16}  # of 64
    for keep in (0.5, 0.25, 0.5):
        made = generate(
            llava,
            asked.prompt,
            multi_modal_data={"image": asked.pictures[0]},
            multi_modal_uuids={"image": ["mine"]},
            mm_processor_kwargs={"vtfast_keep": keep},
        )
        answer = of_patch("llava", "diversity", keep)[0].tokens
        assert list(made.outputs[0].token_ids) == answer
        image = llava.llm_engine.model_config.hf_config.image_token_index
        assert made.prompt_token_ids.count(image) == tokens[keep]


def test_a_prefix_that_covers_the_picture_is_found_again(llava):
    """By another question about it, with the same plan and not with another."""
    first, second = (
        Request(f"{QUESTION[:13]}{q} ASSISTANT:", [PICTURE]) for q in ("read", "count")
    )
    cold = ask(llava, [second])
    llava.reset_prefix_cache()
    ask(llava, [first])
    warm = generate(llava, second.prompt, multi_modal_data={"image": PICTURE})
    assert warm.num_cached_tokens >= 32
    check_equal(ask(llava, [second]), cold)
    other = {"multi_modal_data": {"image": PICTURE}, "mm_processor_kwargs": {"vtfast_keep": 0.25}}
    assert generate(llava, second.prompt, **other).num_cached_tokens == 0


# From here on tests have engines of their own: a process runs one at a time.


@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_a_token_that_stands_for_no_picture_is_refused(tmp_path_factory, keep):
    """It would be taken for a place of the pictures behind it."""
    folder = checkpoint("qwen", tmp_path_factory.getbasetemp())
    with engine(folder, {"keep": keep}) as made:
        asked = requests("qwen")[0]
        stray = asked.prompt.replace("USER: ", "USER: <video> ")
        with pytest.raises(ValueError, match="2 tokens that stand for a picture, and 1 came"):
            ask(made, [Request(stray, asked.pictures)])
        check_equal(ask(made, [asked]), of_patch("qwen", "diversity", keep)[:1])


def test_a_keep_is_refused_where_nothing_is_pruned(tmp_path_factory):
    folder = checkpoint("qwen", tmp_path_factory.getbasetemp())
    with engine(folder) as made:
        asked = requests("qwen")[0]
        with pytest.raises(ValueError, match="does not prune"):
            ask(made, [asked], [0.5])
        assert ask(made, [asked])[0].tokens


def test_clips_are_pruned_too(tmp_path_factory):
    """Of Qwen2.5-VL, whose clips stand in one piece; `vtfast.patch` chooses the same tokens."""
    import numpy as np
    from transformers import AutoProcessor
    from transformers.video_utils import VideoMetadata
    from vllm import SamplingParams

    import vtfast
    from vtfast import toy

    folder = checkpoint("qwen", tmp_path_factory.getbasetemp())
    prompt = "USER: <vision_start><video><vision_end>\nread the code . ASSISTANT:"
    clips = [np.random.default_rng(n).integers(0, 256, (n, 96, 120, 3), np.uint8) for n in (4, 6)]
    processor, (model, _) = AutoProcessor.from_pretrained(folder), toy.load("qwen")
    for method, keep in (("diversity", 0.5), ("random", 0.25)):
        with engine(
            folder, {"method": method, "keep": keep}, limit_mm_per_prompt={"image": 1, "video": 1}
        ) as made:
            for clip in clips:
                about = {"fps": 2.0, "total_num_frames": len(clip), "duration": len(clip) / 2}
                about["frames_indices"] = list(range(len(clip)))
                metadata = {**about, "video_backend": "none", "do_sample_frames": False}
                given = [{"prompt": prompt, "multi_modal_data": {"video": [(clip, metadata)]}}]
                how = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
                got = made.generate(given, how, use_tqdm=False)[0].outputs[0].token_ids
                inputs = processor(
                    text=[prompt],
                    videos=[clip],
                    video_metadata=[VideoMetadata(**about)],
                    do_sample_frames=False,
                    return_tensors="pt",
                )
                with vtfast.patch(model, [vtfast.Prune(0, method, keep)]):
                    rows = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
                assert list(got) == rows[0, inputs["input_ids"].shape[1] :].tolist()


def test_clips_of_qwen3_are_refused(tmp_path_factory):
    """Their frames stand apart, and how many tokens of each stay is known too late."""
    import numpy as np
    from vllm.exceptions import VLLMValidationError

    folder = checkpoint("qwen3", tmp_path_factory.getbasetemp())
    limits = {"limit_mm_per_prompt": {"image": 1, "video": 1}}
    with engine(folder, {"keep": 0.5}, **limits) as made:
        clip = np.zeros((4, 96, 96, 3), np.uint8)
        about = {"fps": 2.0, "total_num_frames": 4, "duration": 2.0, "frames_indices": [0, 1, 2, 3]}
        data = {"video": [(clip, {**about, "video_backend": "none", "do_sample_frames": False})]}
        prompt = "USER: <vision_start><video><vision_end>\nread the code . ASSISTANT:"
        with pytest.raises(VLLMValidationError, match="At most 0 video"):
            generate(made, prompt, multi_modal_data=data)
        check_equal(ask(made, requests("qwen3")[:1]), of_patch("qwen3", "diversity", 0.5)[:1])


@pytest.mark.parametrize(
    ("settings", "captured"), [({"keep": 0.5}, []), (None, ["image", "video"])]
)
def test_no_graph_of_the_tower_goes_past_the_choice(tmp_path_factory, settings, captured):
    """On a GPU vLLM may capture the tower, and then does not call what prunes."""
    folder = checkpoint("qwen", tmp_path_factory.getbasetemp())
    with engine(folder, settings, limit_mm_per_prompt={"image": 1, "video": 1}) as made:
        found = made.apply_model(lambda model: model.get_encoder_cudagraph_config().modalities)
    assert found == [captured]
