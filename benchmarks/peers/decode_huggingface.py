"""Decode steps of Hugging Face's model with its own cache, as `generate` runs them. Started by `groundup bench`."""

import os
import time

for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS"):  # what groundup sets for itself is not for others
    os.environ.pop(name, None)

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402


@torch.inference_mode()
def prepare(options):
    torch.set_num_threads(options["threads"])
    batch, prompt, new = options["batch"], options["prompt"], options["new"]
    model = AutoModelForCausalLM.from_pretrained(options["folder"], dtype=torch.bfloat16).eval()
    prompts = torch.randint(options["shape"]["vocab_size"], (batch, prompt), generator=torch.Generator().manual_seed(0))

    def decode(steps):
        """`generate` of a prompt and `new` tokens, without the time of the prompt and the first of them."""
        seconds = 0.0
        for start in range(0, steps, new):
            count = min(new, steps - start)
            began = time.perf_counter()
            generate(1)
            first = time.perf_counter()
            generate(count + 1)
            seconds += max(1e-9, time.perf_counter() - first - (first - began))
        return {"peak_bytes": 0, "seconds": seconds}

    @torch.inference_mode()
    def generate(tokens):
        model.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=False, min_new_tokens=tokens,
            max_new_tokens=tokens, pad_token_id=0,
        )  # fmt: skip

    def prefill(times):
        for _ in range(times):
            generate(1)
        return {"peak_bytes": 0}

    facts = {"threads": torch.get_num_threads(), "versions": {"transformers": transformers.__version__}}
    return facts, prefill if options["mode"] == "prefill" else decode
