"""One question about pictures, as a checkpoint's processor encodes it, and its pictures as rasters.

The pictures come first, then the clip, then the text, through the checkpoint's chat template; a
processor without one gets LLaVA-1.5's plain form, `USER: <image>\\n… ASSISTANT:`.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vtfast.errors import InputError
from vtfast.inputs.checkpoints import Checkpoint, short
from vtfast.inputs.data import chat
from vtfast.inputs.pictures import Clip
from vtfast.inputs.views import View, cut, stage_views
from vtfast.patching import Handle


class Prompt:
    """A question about pictures, ready for the model.

    Args:
        checkpoint: whose processor encodes it.
        text: the question.
        images: pictures by name, in the order the model sees them; may be empty with a clip.
        clip: frames, for models that take video.

    Attributes:
        written: the prompt as the model was taught to read it, a placeholder for each picture.
        inputs: what the model is called with, a batch of one, on the CPU.
        columns: int64 [visual tokens], where they stand in the input row.
        pictures: visual tokens of each picture; a clip is one.
        text_tokens: all other tokens.
        tokenizer: of the processor.

    Raises InputError for what the checkpoint cannot take.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        text: str,
        images: Sequence[tuple[str, Image.Image]],
        clip: Clip | None = None,
    ) -> None:
        if clip and not checkpoint.takes_video:
            raise InputError(
                f"--video: {checkpoint.name} takes no video; pass frames with --image, or take a "
                "Qwen2.5-VL"
            )
        self.text = text
        self._checkpoint, self._images, self._clip = checkpoint, images, clip
        self.tokenizer = checkpoint.processor.tokenizer
        self.written = self._write(text)
        self.inputs = self._encode()
        ids, config = self.inputs["input_ids"][0], checkpoint.config
        visual = ids == config.image_token_id
        if checkpoint.takes_video:
            visual |= ids == config.video_token_id
        self.columns: Tensor = visual.nonzero()[:, 0]
        self.text_tokens = len(ids) - len(self.columns)
        self._grids = self._merged_grids()
        self.pictures = [skip + t * rows * columns for t, rows, columns, skip in self._grids]

    def unknown_words(self) -> list[str]:
        """Words of the question that the tokenizer has no token for."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None:
            return []
        encode = self.tokenizer.encode
        return [w for w in self.text.split() if unknown in encode(w, add_special_tokens=False)]

    def views(self, handle: Handle) -> list[View]:
        """The pictures, or the clip's frames, with what a patch (`record=True`) kept of them."""
        plain, skips = [], []
        several = len(self._images) + (self._clip is not None) > 1
        for number, (t, rows, columns, skip) in enumerate(self._grids):
            for step in range(t):
                if number < len(self._images):
                    picture = self._as_seen(number)
                    name = self._images[number][0] if several else View.name
                else:
                    assert self._clip is not None
                    frames = self._clip.frames
                    each = -(-len(frames) // t)  # frames in one step of the grid
                    first, last = step * each + 1, min((step + 1) * each, len(frames))
                    picture = frames[first - 1]
                    name = f"frame{f's {first}-' if last > first else ' '}{last} of {len(frames)}"
                plain.append(View(picture, (rows, columns), name=name))
                skips.append(skip if step == 0 else 0)
        return cut(plain, stage_views(handle, self.columns), skips)

    def _write(self, text: str) -> str:
        """The question with placeholders, in the checkpoint's chat template."""
        processor = self._checkpoint.processor
        image, video = (getattr(processor, f"{kind}_token", None) for kind in ("image", "video"))
        for placeholder in (image, video):
            if placeholder and placeholder in text:
                raise InputError(
                    f"--prompt has {placeholder} in it, which stands for a picture; leave it out, "
                    "the pictures come before the text"
                )
        try:
            return chat(processor, text, len(self._images), clip=self._clip is not None)
        except InputError as error:
            raise InputError(f"--model {self._checkpoint.name}: {error}") from None

    def _encode(self) -> Any:
        media: dict[str, Any] = {}
        if self._images:
            media["images"] = [picture for _, picture in self._images]
        if self._clip:
            n, fps = len(self._clip.frames), self._clip.fps
            told = {"fps": fps, "total_num_frames": n, "frames_indices": list(range(n))}
            media |= {"videos": [list(self._clip.frames)], "video_metadata": [told]}
            media |= {"do_sample_frames": False, "fps": fps}
        try:
            return self._checkpoint.processor(text=[self.written], return_tensors="pt", **media)
        except Exception as error:  # too small, too narrow, …: the processor knows
            raise InputError(
                f"--model {self._checkpoint.name} cannot take this input: {short(error)}"
            ) from error

    def _merged_grids(self) -> list[tuple[int, int, int, int]]:
        """Of each picture: steps in time, rows and columns of tokens, tokens before these."""
        names = ("image_grid_thw", "video_grid_thw")
        grids = [self.inputs[name] for name in names if name in self.inputs]
        patches = torch.cat(grids) if grids else None
        return merged_grids(patches, self.inputs.get("pixel_values"), len(self.columns))

    def _as_seen(self, number: int) -> Image.Image:
        """Picture `number` as it reaches the model: cropped, if its processor crops."""
        pixels = self.inputs.get("pixel_values")
        if pixels is None or pixels.ndim != 4:  # patches of the whole picture
            return self._images[number][1]
        how = self._checkpoint.processor.image_processor
        raster = pixels[number].permute(1, 2, 0).float().numpy()
        if how.do_normalize:
            raster = raster * np.array(how.image_std) + np.array(how.image_mean)
        return Image.fromarray((raster.clip(0, 1) * 255).round().astype(np.uint8))


def merged_grids(
    patches: Tensor | None, pixels: Tensor | None, tokens: int
) -> list[tuple[int, int, int, int]]:
    """Of each picture: steps in time, rows and columns of visual tokens, tokens before these.

    Args:
        patches: int [pictures, 3], time, height and width before merging; None where pictures are
            of one size.
        pixels: [pictures, 3, height, width], read without `patches` only.
        tokens: visual tokens of all pictures together.
    """
    if patches is not None:
        side = isqrt(int(patches.prod(1).sum()) // tokens)  # patches along a token's side
        return [(int(t), int(h) // side, int(w) // side, 0) for t, h, w in patches]
    assert pixels is not None
    number, _, high, wide = pixels.shape
    each = tokens // number
    rows, columns = isqrt(each * high // wide), isqrt(each * wide // high)
    return [(1, rows, columns, each - rows * columns)] * number  # a class token may come first
