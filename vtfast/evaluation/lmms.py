"""Pruned models for lmms-eval, which finds them by the entry point group `lmms_eval.models`.

    lmms_eval --model llava_hf_vtfast --tasks mme \\
      --model_args pretrained=llava-hf/llava-1.5-7b-hf,plan=divprune+random,keep=0.5

They are lmms-eval's own classes with a patched model inside; see `vtfast.evaluation.lmms_models`.
"""

from typing import Any

_HOME = "vtfast.evaluation.lmms_models"


def manifests() -> list[Any]:
    """What lmms-eval registers; called by it."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest("llava_hf_vtfast", simple_class_path=f"{_HOME}.LlavaHf"),
        ModelManifest(
            "qwen2_5_vl_vtfast",
            simple_class_path=f"{_HOME}.Qwen25VL",
            chat_class_path=f"{_HOME}.Qwen25VLChat",
        ),
    ]
