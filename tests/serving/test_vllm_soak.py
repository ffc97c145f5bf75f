"""Many requests in one engine, with preemptions: right to the end, and its memory does not grow."""

import resource
from pathlib import Path

from vllm_engines import ask, check_equal, checkpoint, engine, of_patch, preemptions, requests

ROUNDS = 18  # of 32 requests
_SETTLED = 6  # rounds after which nothing new is cached
_MOST = 24 * 2**20  # bytes


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_memory_does_not_grow_over_more_than_five_hundred_requests(tmp_path_factory):
    folder = checkpoint("qwen", tmp_path_factory.getbasetemp())
    limits = {
        "max_num_batched_tokens": 64,
        "num_gpu_blocks_override": 24,
        "mm_processor_cache_gb": 0.01,  # GiB, so that pictures are put out of it too
        "disable_log_stats": False,
    }
    asked, expected = requests("qwen"), of_patch("qwen", "random", 0.5)
    with engine(folder, {"method": "random", "keep": 0.5}, **limits) as made:
        for number in range(ROUNDS):
            check_equal(ask(made, asked, max_tokens=40, ignore_eos=True), expected)
            if number == _SETTLED:
                settled = _resident()
        assert len(asked) * ROUNDS >= 500
        assert preemptions(made) > 0
        assert _resident() - settled < _MOST
