"""One question about pictures, as the processor of a checkpoint encodes it for the model.

The pictures come first, then the video, then the text; or they stand where the text has `<image>`.
The checkpoint's chat template (`chats.py`) writes the prompt.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vtfast.errors import InputError
from vtfast.inputs.chats import chat
from vtfast.inputs.checkpoints import Checkpoint
from vtfast.inputs.hub import short
from vtfast.inputs.pictures import Clip


class Prompt:
    """A question about pictures, encoded for a model.

    Args:
        checkpoint: its processor encodes the question.
        text: the question.
        images: (name, picture), in the order the model sees them; may be empty with a video.
        clip: a video, for models that take one.

    Attributes:
        written: the prompt as the chat template writes it, with a placeholder for each picture.
        inputs: what the model is called with, a batch of one, on the CPU.
        columns: int64 [visual tokens], their positions in `inputs["input_ids"][0]`.
        grids: for each picture and then the video: time steps, rows and columns of visual tokens,
            and the number of visual tokens before these that are no patch (a class token).
        pictures: visual tokens of each picture and then of the video.
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
                f"--video: {checkpoint.name} takes no video; pass frames with --image, or use a "
                "model of Qwen or GLM-4V"
            )
        self.text, self.images, self.clip = text, images, clip
        self._checkpoint = checkpoint
        self.tokenizer = checkpoint.processor.tokenizer
        self.written = self._write(text)
        self.inputs = self._encode()
        ids, config = self.inputs["input_ids"][0], checkpoint.config
        visual = ids == config.image_token_id
        if checkpoint.takes_video:
            visual |= ids == config.video_token_id
        self.columns: Tensor = visual.nonzero()[:, 0]
        self.text_tokens = len(ids) - len(self.columns)
        self.grids = self._merged_grids()
        self.pictures = [skip + t * rows * columns for t, rows, columns, skip in self.grids]

    def unknown_words(self) -> list[str]:
        """Words of the question that are not in the tokenizer's vocabulary."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None:
            return []
        encode = self.tokenizer.encode
        return [w for w in self.text.split() if unknown in encode(w, add_special_tokens=False)]

    def as_seen(self, number: int) -> Image.Image:
        """Picture `number` as it reaches the model: cropped, if its processor crops."""
        pixels = self.inputs.get("pixel_values")
        if pixels is None or pixels.ndim != 4:  # patches of the whole picture
            return self.images[number][1]
        how = self._checkpoint.processor.image_processor
        raster = pixels[number].permute(1, 2, 0).float().numpy()
        if how.do_normalize:
            raster = raster * np.array(how.image_std) + np.array(how.image_mean)
        return Image.fromarray((raster.clip(0, 1) * 255).round().astype(np.uint8))

    def _write(self, text: str) -> str:
        """The attribute `written`."""
        try:
            return chat(
                self._checkpoint.processor, text, len(self.images), clip=self.clip is not None
            )
        except InputError as error:
            raise InputError(
                f"--model {self._checkpoint.name} cannot take this prompt: {error}"
            ) from None

    def _encode(self) -> Any:
        media: dict[str, Any] = {}
        if self.images:
            media["images"] = [picture for _, picture in self.images]
        if self.clip:
            n, fps = len(self.clip.frames), self.clip.fps
            told = {"fps": fps, "total_num_frames": n, "frames_indices": list(range(n))}
            media |= {"videos": [list(self.clip.frames)], "video_metadata": [told]}
            media |= {"do_sample_frames": False, "fps": fps}
        try:
            return self._checkpoint.processor(text=[self.written], return_tensors="pt", **media)
        except Exception as error:  # the picture is too small or too narrow, for example
            raise InputError(
                f"--model {self._checkpoint.name} cannot take this input: {short(error)}"
            ) from error

    def _merged_grids(self) -> list[tuple[int, int, int, int]]:
        """The attribute `grids`, from the grids of patches or, without those, from the pixels."""
        names = ("image_grid_thw", "video_grid_thw")
        tokens = len(self.columns)
        if patches := [self.inputs[name] for name in names if name in self.inputs]:
            grids = torch.cat(patches)  # int64 [pictures, 3]: time, height and width in patches
            side = isqrt(int(grids.prod(1).sum()) // tokens)  # patches along the side of a token
            return [(int(t), int(h) // side, int(w) // side, 0) for t, h, w in grids]
        number, _, high, wide = self.inputs["pixel_values"].shape
        each = tokens // number
        rows, columns = isqrt(each * high // wide), isqrt(each * wide // high)
        return [(1, rows, columns, each - rows * columns)] * number
