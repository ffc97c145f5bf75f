"""AngelSlim's half of `against_angelslim.py`, in an interpreter with a transformers of its own.

Started with a clone of AngelSlim. Takes a JSON request a line and answers in one line; tensors go
through files. Imports nothing of this repository.
"""

import contextlib
import io
import json
import sys
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

CLONE = Path(sys.argv[1])
sys.path[0] = str(CLONE)  # in place of the folder of this script


class Side:
    """One model, unpatched or pruned by AngelSlim with the settings it ships."""

    def __init__(self) -> None:
        import torch
        import transformers
        from angelslim.compressor.token_compressor import adapter
        from angelslim.compressor.token_compressor.base import config

        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        self.torch, self.transformers = torch, transformers
        self.adapters, self.configs, self.select_ms = adapter, config, 0.0

    def versions(self) -> dict:
        return {name: getattr(self, name).__version__ for name in ("torch", "transformers")}

    def load(self, folder: str) -> None:
        auto = self.transformers.AutoModelForImageTextToText
        self.model = auto.from_pretrained(folder, dtype=self.torch.float32).eval()

    def prune(self, family: str, method: str, keep: float) -> None:
        """Wraps the model; from here on selections are timed and remembered."""

        def watched(select: Any, given: dict) -> tuple:
            def timed(context: Any, **params: Any) -> Any:
                start = perf_counter()
                self.mask = select(context, **params)
                self.select_ms = (perf_counter() - start) * 1e3
                return self.mask

            return timed, given

        path = CLONE / "configs" / family / "pruning" / f"{method}_r0.75.yaml"
        config = self.configs.TokenCompressorConfig.from_yaml(str(path))
        for strategy in config.strategies.values():
            strategy.params["ratio"] = 1 - keep
        mapping = self.configs.yaml.safe_load(path.read_text())["model_mapping"]
        self.adapter = self.adapters.UniversalPruningAdapter(self.model, config, mapping)
        text = self.adapter.wrap_model().model.language_model
        text.pruning_fns = {stage: watched(*pair) for stage, pair in text.pruning_fns.items()}

    def prefill(self, inputs: str, **plan: Any) -> tuple[float, float]:
        """Milliseconds of a prefill, pruned by a plan if there is one, and of the selection."""
        given = self.torch.load(inputs)
        if plan:
            self.prune(**plan)
        start = process_time()
        self.model(**given, use_cache=True, logits_to_keep=1)
        spent = (process_time() - start) * 1e3
        if plan:
            self.adapter.unwrap_model()
        return spent, self.select_ms

    def answer(self, inputs: str, options: dict, out: str) -> None:
        """Saves all tokens, the logits that new ones were taken from, and what was kept."""
        made = self.model.generate(**self.torch.load(inputs), **options)
        self.torch.save((made.sequences, self.torch.stack(made.logits, 1), self.mask), out)


side, answers = None, sys.stdout
for line in sys.stdin:
    request = json.loads(line)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # every prefill prints shapes
            side = side or Side()
            reply = {"result": getattr(side, request.pop("do"))(**request)}
    except Exception as error:  # what it cannot do is a result, too
        reply = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(reply), file=answers, flush=True)
