"""The training step that the peers' programs share: fused AdamW and clipping, as their recipes have it."""

import contextlib
import resource
import sys

import torch


def autocast(options):
    if options["precision"] == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(options["device"], dtype=torch.bfloat16)


class TorchStep:
    def __init__(self, model, loss, options, versions):
        self.model, self.options, self.versions = model, options, versions
        self.loss = torch.compile(loss, dynamic=False) if options["compile"] else loss
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True
        )
        self.generator = torch.Generator().manual_seed(0)

    def step(self):
        shape, device = self.options["shape"], self.options["device"]
        size = (shape["batch_size"], shape["context_length"] + 1)
        batch = torch.randint(shape["vocab_size"], size, generator=self.generator).to(device)
        loss = self.loss(batch[:, :-1], batch[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def run(self, steps):
        for _ in range(steps):
            loss = self.step()
        value = loss.item()  # waits for the device
        return {"loss": value, "peak_bytes": self.peak_bytes()}

    def peak_bytes(self):
        if self.options["device"].startswith("cuda"):
            return torch.cuda.max_memory_allocated()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def prepared(self):
        """What worker.py asks for: facts and the function to time. Warm-up and compilation are done."""
        self.model.train()
        self.run(self.options["warmup_steps"])
        facts = {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__, **self.versions},
        }
        return facts, self.run
