"""Decode steps of llama.cpp through its C interface. Started by `groundup bench`.

llama-cpp-python builds the library from source for this processor; `LLAMA_CPP_LIB_PATH` may name another build of it.
"""

import ctypes
import time
from pathlib import Path

import llama_cpp
import numpy as np


def prepare(options):
    llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    batch, prompt, new = options["batch"], options["prompt"], options["new"]
    model = llama_cpp.llama_model_load_from_file(
        str(Path(options["folder"]) / f"{options['weights']}.gguf").encode(), llama_cpp.llama_model_default_params()
    )
    assert model, "llama.cpp did not read the model"
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = batch * (prompt + new + 16)
    params.n_batch = params.n_ubatch = max(512, batch)
    params.n_seq_max = batch
    params.n_threads = params.n_threads_batch = options["threads"]
    params.flash_attn_type = options["flash_attention"]
    context = llama_cpp.llama_init_from_model(model, params)
    assert context, "llama.cpp made no context"
    memory, room = llama_cpp.llama_get_memory(context), llama_cpp.llama_batch_init(max(prompt, batch), 0, 1)
    vocab = options["shape"]["vocab_size"]
    prompts = np.random.default_rng(0).integers(0, vocab, (batch, prompt)).tolist()

    def forward(rows):
        """rows: (token, position, sequence, whether its logits are wanted)."""
        room.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            room.token[i], room.pos[i], room.n_seq_id[i] = token, position, 1
            room.seq_id[i][0], room.logits[i] = sequence, wanted
        assert llama_cpp.llama_decode(context, room) == 0

    def best(places):
        found = []
        for i in places:
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (vocab,))
            found.append(int(logits.argmax()))
        return found

    first = []
    for row, ids in enumerate(prompts):
        forward([(token, i, row, i == prompt - 1) for i, token in enumerate(ids)])
        first += best([prompt - 1])

    def decode(steps):
        seconds = 0.0
        for start in range(0, steps, new):
            for row in range(batch):
                llama_cpp.llama_memory_seq_rm(memory, row, prompt, -1)
            tokens, began = first, time.perf_counter()
            for step in range(min(new, steps - start)):
                forward([(token, prompt + step, row, True) for row, token in enumerate(tokens)])
                tokens = best(range(batch))
            seconds += time.perf_counter() - began
        return {"peak_bytes": 0, "seconds": seconds}

    def prefill(times):
        seconds = 0.0
        for _ in range(times):
            llama_cpp.llama_memory_clear(memory, True)
            began = time.perf_counter()
            forward([(token, i, 0, i == prompt - 1) for i, token in enumerate(prompts[0])])
            seconds += time.perf_counter() - began
        return {"peak_bytes": 0, "seconds": seconds}

    facts = {
        "threads": options["threads"],
        "versions": {"llama-cpp-python": llama_cpp.__version__},
        "system": llama_cpp.llama_print_system_info().decode(),
    }
    return facts, prefill if options["mode"] == "prefill" else decode


@llama_cpp.llama_log_callback
def _quiet(level, text, data):
    pass
