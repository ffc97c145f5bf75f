"""The namespace of the ops in `torch.ops`.

Hugging Face's kernel builder writes a file with this name and these two names in it for every
build, with a namespace of its own; so it is the one file that `make hub` does not copy
(docs/hub.md).
"""

import torch

ops = torch.ops.vtfast


def add_op_namespace_prefix(op_name: str) -> str:
    return f"vtfast::{op_name}"
