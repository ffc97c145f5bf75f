"""Pruned models for lmms-eval, which finds them by the entry point group `lmms_eval.models`.

    python -m lmms_eval --model llava_hf_vtfast --tasks mme \\
      --model_args pretrained=llava-hf/llava-1.5-7b-hf,plan=divprune+random,keep=0.5

They are lmms-eval's own classes with a patched model inside; see `vtfast.evaluation.lmms_models`.
"""

from typing import Any

_HOME = "vtfast.evaluation.lmms_models"
_CLASSES = {"llava_hf_vtfast": "LlavaHf", "qwen2_5_vl_vtfast": "Qwen25VL"}


def manifests() -> list[Any]:
    """The models for lmms-eval to register; lmms-eval calls this."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest(
            name, simple_class_path=f"{_HOME}.{cls}", chat_class_path=f"{_HOME}.{cls}Chat"
        )
        for name, cls in _CLASSES.items()
    ]
