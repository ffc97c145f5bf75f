"""Pruned models for lmms-eval, which finds them by the entry point group `lmms_eval.models`.

    python -m lmms_eval --model llava_hf_vtfast --tasks mme \\
      --model_args pretrained=llava-hf/llava-1.5-7b-hf,plan=divprune+random,keep=0.5

They are lmms-eval's own classes with a patched model inside; see `vtfast.evaluation.lmms_models`.
"""

from typing import Any, NamedTuple


class Theirs(NamedTuple):
    """A model of lmms-eval.

    cls: its class. kinds: "simple" (a prompt as text), "chat" (messages), or both.
    """

    cls: str
    kinds: tuple[str, ...] = ("simple", "chat")

    def ours(self, kind: str) -> str:
        """The name of the pruned class."""
        return self.cls + "Chat" * (kind == "chat")


MODELS = {
    "llava_hf": Theirs("LlavaHf"),  # LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision
    "qwen2_vl": Theirs("Qwen2_VL", ("simple",)),
    "qwen2_5_vl": Theirs("Qwen2_5_VL"),
    "qwen3_vl": Theirs("Qwen3_VL"),
    "qwen3_5": Theirs("Qwen3_5"),
    "glm4v": Theirs("GLM4V", ("simple",)),
    "internvl_hf": Theirs("InternVLHf", ("chat",)),
}


def manifests() -> list[Any]:
    """The models for lmms-eval to register, as `<its name>_vtfast`; lmms-eval calls this."""
    from lmms_eval.models.registry_v2 import ModelManifest

    home = "vtfast.evaluation.lmms_models"
    return [
        ModelManifest(
            f"{name}_vtfast",
            **{f"{kind}_class_path": f"{home}.{one.ours(kind)}" for kind in one.kinds},
        )
        for name, one in MODELS.items()
    ]
