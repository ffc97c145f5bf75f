"""vLLM's OpenAI server on this machine alone, as clients see it."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from vllm_client import PROMPT_TOKENS
from vllm_engines import COMPARED, NEW_TOKENS, Request, checkpoint, of_patch, requests

from vtfast.toy import scenes

KEEPS = (None, 0.25, 1.0)
_START = 240  # seconds


class Server:
    def __init__(self, folder, settings, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        port = self.url.rpartition(":")[2]
        options = {
            "--model": folder,
            "--host": "127.0.0.1",
            "--port": port,
            "--served-model-name": "toy",
            "--dtype": "float32",
            "--max-model-len": "512",
            "--block-size": "32",
            "--max-num-batched-tokens": "64",
            "--limit-mm-per-prompt": '{"image": 4, "video": 0}'
            if "qwen" in folder
            else '{"image": 4}',
            "--additional-config": json.dumps({"vtfast": settings}),
        }
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--enforce-eager", "--trust-request-mm-kwargs"]
        command += [part for pair in options.items() for part in pair]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        env.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self):
        end = time.monotonic() + _START
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2)
            except (OSError, urllib.error.URLError):
                time.sleep(0.5)
            else:
                return
        raise TimeoutError(self.log.read_text()[-3000:])

    def stop(self):
        """By its own process id; the engine is its child."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)

    def ask(self, request, **more):
        """The status and the answer of the server to a request."""
        question = request.prompt.split("\n")[-1].removeprefix("USER: ").removesuffix(" ASSISTANT:")
        content = [{"type": "image_url", "image_url": {"url": _url(p)}} for p in request.pictures]
        body = {
            "model": "toy",
            "messages": [
                {"role": "user", "content": [*content, {"type": "text", "text": question}]}
            ],
            "temperature": 0,
            "max_tokens": NEW_TOKENS,
            "add_special_tokens": True,
            "return_token_ids": True,
            **more,
        }
        call = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(call, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def _url(picture):
    held = io.BytesIO()
    picture.save(held, "PNG")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"


@pytest.fixture(scope="module", params=["llava", "qwen"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def server(family, tmp_path_factory):
    root = tmp_path_factory.getbasetemp()
    made = Server(checkpoint(family, root), {"keep": 0.5}, root / f"server-{family}.log")
    try:
        made.wait()
        yield made
    finally:
        made.stop()


def test_clients_at_once_get_the_answers_of_a_patched_model(family, server):
    """With bad requests in between, which end with 400 and harm nobody."""
    asked = [
        (number, keep)
        for number, request in enumerate(requests(family))
        for keep in KEEPS
        if len(request.pictures) == 1
    ]

    def ask(one):
        number, keep = one
        more = {} if keep is None else {"mm_processor_kwargs": {"vtfast_keep": keep}}
        found = server.ask(requests(family)[number], **more)
        bad = server.ask(requests(family)[number], mm_processor_kwargs={"vtfast_keep": 7.5})
        return found, bad

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, asked))
    tokens = {keep: [] for keep in KEEPS}
    for (number, keep), ((status, found), (code, said)) in zip(asked, answers, strict=True):
        assert status == 200
        expected = of_patch(family, "diversity", 0.5 if keep is None else keep)[number]
        assert found["choices"][0]["token_ids"] == expected.tokens
        COMPARED.append(1)
        tokens[keep].append(found["usage"]["prompt_tokens"])
        assert code == 400
        assert "vtfast_keep=7.5" in said
    assert sum(tokens[0.25]) < sum(tokens[None]) < sum(tokens[1.0])


def test_the_example_of_the_page_uses_the_tokens_that_it_says(family, server):
    pictures, questions, _ = scenes(1, seed=0, task="digit")
    used = {}
    for keep in PROMPT_TOKENS:
        asked = Request(questions[0], pictures)
        status, found = server.ask(
            asked, mm_processor_kwargs={"vtfast_keep": keep}, add_special_tokens=False
        )
        assert status == 200
        used[keep] = found["usage"]["prompt_tokens"]
    assert (used[1.0] - used[0.5], used[0.5] - used[0.25]) == (32, 16)
    assert family != "qwen" or used == PROMPT_TOKENS


def test_a_wrong_setting_ends_the_server_with_one_line(tmp_path):
    made = Server(checkpoint("llava", tmp_path), {"method": "topk"}, tmp_path / "server.log")
    try:
        assert made.process.wait(_START) != 0
    finally:
        made.stop()
    lines = made.log.read_text().splitlines()
    assert any("vtfast: method 'topk' reads scores" in line for line in lines)
