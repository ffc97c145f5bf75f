"""Processors that need Pillow only, for where torchvision is not installed.

    processor = processors.load("Qwen/Qwen3-VL-4B-Instruct")
    inputs = processor(images=[picture], text=[prompt], return_tensors="pt")

Most stock processors of transformers could read pictures without torchvision, but cannot be built,
since their video processor needs it. `load` builds them without that. The processor of Qwen2-VL and
Qwen2.5-VL takes clips too: it turns the frames into patches with the image processor.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL.Image import Image, alpha_composite, new
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    PreTrainedConfig,
    Qwen2VLImageProcessorPil,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.processing_utils import ProcessorMixin

from vtfast.errors import InputError

FPS = 2.0  # at which Qwen's own tools sample a clip


def load(name: str | Path, **kwargs: Any) -> Any:
    """The processor of a checkpoint: a local folder or a Hugging Face Hub id.

    It is the stock one (`transformers.AutoProcessor`) where that can be built, else one on Pillow
    that makes the same prompts. Only that of Qwen2-VL and Qwen2.5-VL takes clips then.

    `kwargs` are those of every `from_pretrained`, such as `revision` and `local_files_only`.
    Raises what `AutoProcessor.from_pretrained` raises for files that are missing or cannot be read;
    ImportError or ValueError, which name it, for another package that the processor needs.
    """
    try:
        return AutoProcessor.from_pretrained(name, **kwargs)
    except (ImportError, ValueError) as error:
        if "torchvision" not in str(error).lower():
            raise
    return _on_pillow(_stock_name(name, **kwargs)).from_pretrained(name, **kwargs)


def _stock_name(name: str | Path, **kwargs: Any) -> str:
    """The class of processor that a checkpoint names, else the one of its model."""
    settings, _ = ProcessorMixin.get_processor_dict(name, **kwargs)
    pictures, _ = Qwen2VLImageProcessorPil.get_image_processor_dict(name, **kwargs)
    named = settings.get("processor_class") or pictures.get("processor_class")
    if named:
        return str(named)
    config, _ = PreTrainedConfig.get_config_dict(name, **kwargs)
    return PROCESSOR_MAPPING_NAMES[config["model_type"]]


@cache
def _on_pillow(stock: str) -> Any:
    """What stands in for the stock class of that name."""
    own = {cls.stock: cls for cls in (Qwen25VLProcessor, Qwen2VLProcessor, PixtralProcessor)}
    if stock in own:
        return own[stock]
    return type(stock, (_PicturesOnly, getattr(transformers, stock)), {"__module__": __name__})


class _NoVideoProcessor:
    """In place of a video processor: refuses every clip."""

    num_frames = fps = None  # no sampling; SmolVLM's chat template asks

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        raise InputError(
            "this processor reads clips only with torchvision; install it (pip install "
            "torchvision) or pass the frames as pictures"
        )


class _PicturesOnly(ProcessorMixin):
    """A mixin before a stock class, which is then built of an image processor and a tokenizer."""

    video_processor = _NoVideoProcessor()

    @classmethod
    def get_attributes(cls) -> list[str]:
        """What the stock class is made of, without its video processor."""
        return [part for part in super().get_attributes() if part != "video_processor"]

    @classmethod
    def from_args_and_dict(cls, args: Sequence[Any], processor_dict: Any, **kwargs: Any) -> Any:
        """As the stock class is built of its parts, the third of which is a video processor."""
        return super().from_args_and_dict([*args, cls.video_processor], processor_dict, **kwargs)

    def save_pretrained(
        self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write the stock class's files, and a preprocessor_config.json that serves clips too."""
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        self.image_processor.save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


class PixtralProcessor(ProcessorMixin):
    """The stock class of that name, which cannot even be imported without torchvision.

    It writes a picture as rows of `image_token`, one for each square of `patch_size *
    spatial_merge_size` pixels. `image_break_token` stands between rows, and `image_end_token` at
    the end. Called as the stock class, it returns input_ids and attention_mask, int64 [B, S],
    pixel_values fp32 [pictures, 3, height, width], filled up with zeros to the largest picture, and
    image_sizes int64 [pictures, 2]: rows and columns of pixels without those zeros.
    """

    stock = "PixtralProcessor"

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: str | None = None,
        image_token: str = "[IMG]",
        image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token, self.image_break_token = image_token, image_break_token
        self.image_end_token = image_end_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)

    def _process_images(self, images: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        side = self.patch_size * self.spatial_merge_size
        processed: tuple[Any, list[str]] = super()._process_images(
            images, **kwargs | {"patch_size": side}
        )
        return processed

    def replace_image_token(self, image_inputs: Any, image_idx: int, **_: Any) -> str:
        side = self.patch_size * self.spatial_merge_size
        rows, columns = (int(pixels) // side for pixels in image_inputs["image_sizes"][image_idx])
        row = self.image_token * columns
        return self.image_break_token.join([row] * rows) + self.image_end_token


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

    stock = "Qwen2_5_VLProcessor"  # what it stands in for
    tells_seconds = True  # whether the model is told how long a step of a clip takes
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
        stock = kind.get("processor_class") or cls.stock
        if stock != cls.stock:
            raise InputError(
                f"{name} has a {stock}, which {cls.__name__} cannot stand in for; use "
                "vtfast.processors.load"
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
        inputs: dict[str, Any] = {
            "pixel_values_videos": np.concatenate([patches for patches, _ in clips]),
            "video_grid_thw": np.array([grid for _, grid in clips]),
        }
        if self.tells_seconds:
            inputs["second_per_grid_ts"] = [seconds] * len(clips)
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


class Qwen2VLProcessor(Qwen25VLProcessor):
    """The same for Qwen2-VL, which is not told of seconds."""

    stock, tells_seconds = "Qwen2VLProcessor", False


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
