"""One question about pictures, as the processor of a checkpoint encodes it for the model.

The pictures come first, then the video, then the text; or they stand where the text has `<image>`.
The checkpoint's chat template (`chats.py`) writes the prompt.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vtfast.errors import InputError
from vtfast.inputs.chats import chat
from vtfast.inputs.checkpoints import Checkpoint
from vtfast.inputs.grids import PatchGrid, as_seen, find_grids
from vtfast.inputs.hub import short
from vtfast.inputs.pictures import Clip
from vtfast.models import reader_of


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
        grids: of patches, in reading order: of the pictures and then the video, or of their tiles.
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
        found = find_grids(*reader_of(checkpoint.config), self.inputs)
        self.grids, self.pictures = found.grids, found.sizes
        self.columns: Tensor = torch.from_numpy(found.visual[0].nonzero()[0])
        self.text_tokens = found.visual.size - len(self.columns)

    def unknown_words(self) -> list[str]:
        """Words of the question that are not in the tokenizer's vocabulary."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None:
            return []
        encode = self.tokenizer.encode
        return [w for w in self.text.split() if unknown in encode(w, add_special_tokens=False)]

    def as_seen(self, grid: PatchGrid) -> Image.Image:
        """The picture or tile of a grid as it reaches the model: cropped, if its processor
        crops."""
        tile = next(i for i, one in enumerate(self.grids) if one is grid)
        seen = as_seen(self._checkpoint.processor, self.inputs, tile)
        return self.images[grid.number][1] if seen is None else seen

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
            media["images"] = [[picture for _, picture in self.images]]  # of the one prompt
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
