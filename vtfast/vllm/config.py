"""Read the settings while vLLM configures itself, in the process that does, before all else."""

from collections.abc import Collection, Mapping
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, SiglipVisionConfig
from vllm.config.multimodal import VideoDummyOptions
from vllm.logger import init_logger
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

from vtfast.errors import InputError, StateError, VTFastError
from vtfast.vllm.settings import KEEP, Settings, given_to

_LOG = init_logger("vllm.vtfast")  # under vLLM's, so that it is shown
_ENTRY = "vtfast"  # of the model's Hugging Face config, which goes to every process


def settings_of(config: Any) -> Settings | None:
    """The settings that a model's Hugging Face config carries; None: it is not pruned."""
    given = getattr(config, _ENTRY, None)
    return None if given is None else Settings.read(given, 0, "")


def hook(ours: Mapping[str, object], all_models: Collection[str]) -> None:
    """Have vLLM configure the models that prune by the settings, and refuse these for others."""
    for architecture in {*ours, *all_models}:
        stock = MODELS_CONFIG_MAP.get(architecture, VerifyAndUpdateConfig)
        if not issubclass(stock, _Hook):
            kind = _OWN.get(architecture, _Pruned) if architecture in ours else _Refused
            MODELS_CONFIG_MAP[architecture] = type(kind.__name__, (kind, stock), {})


class _Hook(VerifyAndUpdateConfig):
    """In front of what vLLM does to the configuration of an architecture by itself."""

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        super().verify_and_update_config(vllm_config)
        try:
            given = given_to(vllm_config.additional_config)
            if given is not None:
                cls.configure(vllm_config, given)
        except VTFastError as error:
            # A ValueError would come out as several lines of pydantic's.
            raise StateError(f"vtfast: {error}") from None

    @classmethod
    def configure(cls, vllm_config: Any, given: object) -> None:
        raise NotImplementedError


class _Refused(_Hook):
    @classmethod
    def configure(cls, vllm_config: Any, given: object) -> None:
        name = vllm_config.model_config.architecture
        raise InputError(f"{name} is not pruned in vLLM; leave the setting out (docs/serving.md)")


class _Pruned(_Hook):
    @classmethod
    def configure(cls, vllm_config: Any, given: object) -> None:
        model = vllm_config.model_config
        config, pictures = model.hf_config, model.multimodal_config
        settings = Settings.read(given, model.get_total_num_hidden_layers(), config.model_type)
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise InputError(
                "pipeline parallel is not possible, as positions are placed by its first process "
                "alone; use tensor or data parallel"
            )
        if vllm_config.speculative_config is not None:
            raise InputError("speculative decoding was not tested with pruning; leave one out")
        lora = vllm_config.lora_config
        if lora is not None and getattr(lora, "enable_tower_connector_lora", False):
            raise InputError(
                "adapters of the vision tower go by vLLM's numbers of tokens, which are those that "
                "stay; leave --enable-tower-connector-lora out"
            )
        if KEEP in (pictures.mm_processor_kwargs or {}):
            raise InputError(f'{KEEP} is of a request; for the server set "keep" of vtfast')
        if pictures.video_pruning_rate:
            raise InputError("--video-pruning-rate prunes too; leave one of both out")
        cls.prepare(config, pictures, settings)
        setattr(config, _ENTRY, settings.record())
        _LOG.info("vtfast prunes what %s sees: %s", model.architecture, settings)

    @classmethod
    def prepare(cls, config: Any, pictures: Any, settings: Settings) -> None:
        """Have vLLM place the tokens that stay where they were."""
        if settings.positions == "renumber":
            raise InputError(
                'positions="renumber" is for LLaVA; pictures of this model have places in a grid'
            )
        _place_by_embeddings(pictures)


def _place_by_embeddings(pictures: Any) -> None:
    """vLLM takes positions from the embeddings of pictures only where it prunes video by itself.
    That it would is undone where it matters (`PruningProcessor`, `Pruned`)."""
    pictures.video_pruning_rate = 0.5


class _Llava(_Pruned):
    @classmethod
    def prepare(cls, config: Any, pictures: Any, settings: Settings) -> None:
        text, tower = config.text_config, config.vision_config
        if not isinstance(tower, CLIPVisionConfig | SiglipVisionConfig):
            raise InputError(
                f"a LLaVA with a tower of type {tower.model_type} is not pruned in vLLM; leave the "
                "setting out"
            )
        if settings.positions == "renumber":
            return  # the places that vLLM gives by itself
        rope = dict(getattr(text, "rope_parameters", None) or {})
        if rope.get("rope_type", "default") != "default" or not isinstance(text, LlamaConfig):
            raise InputError(
                "tokens can keep their places in a Llama with plain rotary embeddings alone; pass "
                '"positions": "renumber"'
            )
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        third = width // 2 // 3
        # Three axes with the same positions are plain rotary embeddings, and where there are three
        # vLLM lets a model place its tokens.
        rope["mrope_section"] = [width // 2 - 2 * third, third, third]
        text.rope_parameters = rope
        text.architectures = ["VTFastLlamaForCausalLM"]
        _place_by_embeddings(pictures)


class _Qwen3(_Pruned):
    @classmethod
    def prepare(cls, config: Any, pictures: Any, settings: Settings) -> None:
        super().prepare(config, pictures, settings)
        # A clip's frames stand apart, each with its time in front, and how many tokens of each stay
        # is known only once the clip has been encoded.
        pictures.limit_per_prompt["video"] = VideoDummyOptions(count=0)


_OWN = {"LlavaForConditionalGeneration": _Llava, "Qwen3VLForConditionalGeneration": _Qwen3}
