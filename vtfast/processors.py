"""A processor for Qwen2.5-VL that needs Pillow only, without torchvision.

transformers' `Qwen2_5_VLProcessor` cannot be built without torchvision, which its video processor
needs. This subclass can: it turns the frames of a video into patches with the image processor.

    processor = Qwen25VLProcessor.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct")
    inputs = processor(images=[picture], text=[prompt], return_tensors="pt")
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image, alpha_composite, new
from transformers import AutoTokenizer, BatchFeature, Qwen2VLImageProcessorPil
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.processing_utils import ProcessorMixin

from vtfast.errors import InputError

_SAME_PROMPTS = ("Qwen2_5_VLProcessor", "Qwen2VLProcessor")
FPS = 2.0  # at which Qwen's own tools sample a clip


class Qwen25VLProcessor(Qwen2_5_VLProcessor):
    """`Qwen2_5_VLProcessor` without torchvision, made of an image processor and a tokenizer.

    Called with `text` (a prompt or a list of them) and `images`, `videos` or both, it returns
    input_ids, attention_mask and mm_token_type_ids, int64 [B, S]; for pictures pixel_values fp32
    [patches, channels * frames * side²] and image_grid_thw int64 [pictures, 3] in patches; for
    clips pixel_values_videos, video_grid_thw and second_per_grid_ts likewise. `padding` and
    `return_tensors` are the tokenizer's.

    A clip is a list of frames (Pillow pictures, or one array [frames, height, width, 3]), already
    sampled, at `fps` frames per second (default 2). Unlike the stock processor, it resizes each
    frame by itself, under the limits for pictures, and reads no video files.
    """

    video_processor = None  # clips go through the image processor

    def __init__(
        self, image_processor: Any, tokenizer: Any, chat_template: str | None = None
    ) -> None:
        self.image_token = getattr(tokenizer, "image_token", "<|image_pad|>")
        self.video_token = getattr(tokenizer, "video_token", "<|video_pad|>")
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        # The stock __init__ in between would ask for a video processor.
        template = chat_template or tokenizer.chat_template
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=template)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # what is left out is taken by keyword
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "Qwen25VLProcessor":
        """The processor of a checkpoint: a local folder or a Hugging Face Hub id.

        `kwargs` are those of every `from_pretrained`, such as `revision` and `local_files_only`.
        Raises OSError where a file is missing or cannot be fetched, and InputError for the
        checkpoint of a model that reads its pictures or clips in another way.
        """
        name = pretrained_model_name_or_path
        kind = Qwen2VLImageProcessorPil.get_image_processor_dict(name, **kwargs)[0]
        stock = kind.get("processor_class") or _SAME_PROMPTS[0]
        if stock not in _SAME_PROMPTS:
            raise InputError(
                f"{name} has a {stock}, which {cls.__name__} cannot stand in for; install "
                "torchvision (pip install torchvision) and use transformers.AutoProcessor"
            )
        settings, _ = cls.get_processor_dict(name, **kwargs)
        return cls(
            Qwen2VLImageProcessorPil.from_pretrained(name, **kwargs),
            AutoTokenizer.from_pretrained(name, **kwargs),
            settings.get("chat_template"),
        )

    def save_pretrained(
        self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write the files of a published checkpoint: preprocessor_config.json, the tokenizer's."""
        self.tokenizer.chat_template = self.chat_template
        for part in (self.image_processor, self.tokenizer):
            part.save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any
    ) -> BatchFeature:
        clips = None if videos is None else _clips(videos)
        return super().__call__(images=images, text=text, videos=clips, **kwargs)

    def replace_video_token(self, video_inputs: Mapping[str, Any], video_idx: int, **_: Any) -> str:
        patches = int(video_inputs["video_grid_thw"][video_idx].prod())
        return self.video_token * (patches // self.image_processor.merge_size**2)

    def _process_videos(
        self, videos: Any, fps: float | None = None, **_: Any
    ) -> tuple[dict[str, Any], list[str]]:
        clips = [self._clip_patches(clip) for clip in videos]
        seconds = self.image_processor.temporal_patch_size / (fps or FPS)
        inputs = {
            "pixel_values_videos": np.concatenate([patches for patches, _ in clips]),
            "video_grid_thw": np.array([grid for _, grid in clips]),
            "second_per_grid_ts": [seconds] * len(clips),
        }
        return inputs, [self.replace_video_token(inputs, i) for i in range(len(clips))]

    def _clip_patches(self, clip: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Patches of a clip and its grid; an odd number of frames is filled up with the last one.

        The image processor repeats a picture to fill the frames of a patch; here each repetition
        is replaced by the frame that belongs there.
        """
        depth, side = self.image_processor.temporal_patch_size, self.image_processor.patch_size
        frames = [*clip, *[clip[-1]] * (-len(clip) % depth)]
        repeated = self.image_processor(frames, return_tensors="np")
        _, rows, columns = (int(count) for count in repeated["image_grid_thw"][0])
        steps, places = len(frames) // depth, rows * columns
        # [step, frame in the step, place, channel, repetition, y, x]
        patches = repeated["pixel_values"].reshape(steps, depth, places, -1, depth, side, side)
        moved = patches[:, :, :, :, 0].transpose(0, 2, 3, 1, 4, 5)
        return moved.reshape(steps * places, -1), (steps, rows, columns)


def _clips(videos: Any) -> list[np.ndarray]:
    """Clips, uint8 [frames, height, width, 3] each, from one clip or from nested lists of clips.

    Raises InputError for a file name, a clip without frames, and frames of different sizes.
    """
    if isinstance(videos, str | Path):
        raise InputError(f"videos={str(videos)!r} is a file; pass the frames as a list of pictures")
    if not len(videos):
        raise InputError("a video without frames was passed; pass at least one frame")
    if not _is_frame(videos[0]):
        return [clip for part in videos for clip in _clips(part)]
    frames = [np.asarray(on_white(f) if isinstance(f, Image) else f) for f in videos]
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise InputError(
            f"the frames of a video have shapes {sorted(sizes)}; pass frames of one size, or pass "
            "pictures as images"
        )
    return [np.stack(frames)]


def _is_frame(thing: Any) -> bool:
    return isinstance(thing, Image) or getattr(thing, "ndim", 0) == 3


def on_white(picture: Image) -> Image:
    """A picture as RGB, on white where it is transparent, in any mode that has an alpha band or a
    transparent colour."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    if picture.mode == "1":  # a PNG says 1 where Pillow has 255
        picture.info["transparency"] = 255 * bool(picture.info["transparency"])
    if picture.mode == "La":
        picture = picture.convert("LA")
    inked = picture.convert("RGBA")
    return alpha_composite(new("RGBA", inked.size, "white"), inked).convert("RGB")
