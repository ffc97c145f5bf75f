"""vLLM's runner for CPUs forgets to note whether the model that it loads prunes."""

from typing import Any


def mend() -> None:
    """Note it, once in a process; 0.31 and 0.32 need it."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.models.interfaces import supports_multimodal_pruning
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    stock = CPUModelRunner.load_model
    if hasattr(stock, "mended"):
        return

    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        config = self.model_config.multimodal_config
        prunes = config is not None and config.is_multimodal_pruning_enabled()
        self.is_multimodal_pruning_enabled = bool(
            prunes and supports_multimodal_pruning(self.get_model())
        )

    load_model.mended = True  # type: ignore[attr-defined]
    CPUModelRunner.load_model = load_model
