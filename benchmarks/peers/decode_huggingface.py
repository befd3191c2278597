"""Decode steps of Hugging Face's `generate` with its own cache. Started by `groundup bench`."""

import time

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache, StoppingCriteria, StoppingCriteriaList


class Clock(StoppingCriteria):
    """Stops nothing, and notes when each token was there."""

    def __init__(self):
        self.times = []

    def __call__(self, input_ids, scores, **kwargs):
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def prepare(options):
    torch.set_num_threads(options["threads"])
    batch, prompt, new = options["batch"], options["prompt"], options["new"]
    model = AutoModelForCausalLM.from_pretrained(options["folder"], dtype=torch.bfloat16).eval()
    prompts = torch.randint(options["shape"]["vocab_size"], (batch, prompt), generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def generate(ids, tokens, cache):
        """All ids, and the seconds from the first new token to the last."""
        clock = Clock()
        ids = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens,
            pad_token_id=0, stopping_criteria=StoppingCriteriaList([clock]), past_key_values=cache,
        )  # fmt: skip
        return ids, clock.times[-1] - clock.times[0]

    cache = DynamicCache(config=model.config)
    first, _ = generate(prompts, 1, cache)

    def decode(steps):
        """Each `new` tokens go on from the prompts' keys and values."""
        seconds = 0.0
        for start in range(0, steps, new):
            cache.crop(prompt - cache.get_seq_length())
            seconds += generate(first, min(new, steps - start) + 1, cache)[1]
        return {"peak_bytes": 0, "seconds": seconds}

    def prefill(times):
        for _ in range(times):
            generate(prompts, 1, DynamicCache(config=model.config))
        return {"peak_bytes": 0}

    versions = {"transformers": transformers.__version__, "torch of Hugging Face": torch.__version__}
    facts = {"threads": torch.get_num_threads(), "versions": versions}
    return facts, prefill if options["mode"] == "prefill" else decode
