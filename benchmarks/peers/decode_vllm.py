"""Decode steps of vLLM on a CPU, in this process. Started by `groundup bench`."""

import os
import time

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
import vllm  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402


def prepare(options):
    torch.set_num_threads(options["threads"])
    batch, prompt, new = options["batch"], options["prompt"], options["new"]
    llm = LLM(
        options["folder"], dtype="bfloat16", skip_tokenizer_init=True, max_model_len=prompt + new + 16,
        max_num_seqs=batch, enable_prefix_caching=False, enforce_eager=not options["compile"],
        max_num_batched_tokens=max(2048, batch * prompt),
    )  # fmt: skip
    engine, numbers = llm.llm_engine, iter(range(1 << 30))
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(options["shape"]["vocab_size"], (batch, prompt), generator=generator).tolist()

    def add(count, tokens):
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        for ids in prompts[:count]:
            engine.add_request(str(next(numbers)), {"prompt_token_ids": ids}, params)

    def decode(steps):
        """The next steps of the same requests, until they are through and others take their place."""
        seconds = 0.0
        for _ in range(steps):
            if not engine.has_unfinished_requests():
                add(batch, new + 1)
                made = 0
                while made < batch:  # the prompts
                    made += len(engine.step())
            began = time.perf_counter()
            engine.step()
            seconds += time.perf_counter() - began
        return {"peak_bytes": 0, "seconds": seconds}

    def prefill(times):
        for _ in range(times):
            add(1, 1)
            while engine.has_unfinished_requests():
                engine.step()
        return {"peak_bytes": 0}

    facts = {"threads": torch.get_num_threads(), "versions": {"vllm": vllm.__version__, "torch": torch.__version__}}
    return facts, prefill if options["mode"] == "prefill" else decode
