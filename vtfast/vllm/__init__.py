"""vtfast inside vLLM: visual tokens are dropped between the vision tower and the language model.

    vllm serve Qwen/Qwen2.5-VL-7B-Instruct --additional-config '{"vtfast": {"keep": 0.5}}'

vLLM (0.31 or newer) finds `register` by the entry point `vllm.general_plugins` and calls it in each
of its processes. Without a setting the models registered here are vLLM's own in all they do.
docs/serving.md has what can be set, what a client sees, and what is not possible.
"""

_CLASSES = {  # architecture → where the class is; imported by vLLM when it is served
    "LlavaForConditionalGeneration": "vtfast.vllm.llava:PrunedLlava",
    "Qwen2VLForConditionalGeneration": "vtfast.vllm.qwen:PrunedQwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "vtfast.vllm.qwen:PrunedQwen25VL",
    "Qwen3VLForConditionalGeneration": "vtfast.vllm.qwen:PrunedQwen3VL",
}
_TEXT_MODEL = "VTFastLlamaForCausalLM"  # of a LLaVA whose dropped tokens leave gaps


def register() -> None:
    """Put the classes that prune in the place of vLLM's, and read the settings when it configures
    itself."""
    from vllm import ModelRegistry

    from vtfast.vllm.config import hook

    for architecture, place in _CLASSES.items():
        ModelRegistry.register_model(architecture, place)
    ModelRegistry.register_model(_TEXT_MODEL, "vtfast.vllm.llava:LlamaWithGaps")
    hook(_CLASSES, ModelRegistry.get_supported_archs())
