import json

import pytest
import torch

from groundup.compression import frontier
from groundup.compression.frontier import compress, decode_rate, mark_frontier
from groundup.compression.quantize import load_quantized, weight_bytes
from groundup.compression.settings import CompressSettings
from groundup.compression.teacher_logits import TeacherLogits
from groundup.compression.teacher_writing import write_teacher_logits
from groundup.compression.text import read_texts
from groundup.compression.variants import heal, make_variant
from groundup.evaluation import bits_per_byte
from groundup.inference import Engine
from groundup.model.pretrained import load_pretrained, save_pretrained
from groundup.model.source import read_source
from groundup.report.compression import compression_text, write_compression_report
from groundup.tokenizer import Tokenizer
from tests.compression.small import small_model

TEXT = "the cat sat on the mat. a dog ran to the cat, and the cat ran up a tree.\n\n" * 60
SETTINGS = CompressSettings(
    methods=("int8", "fp8", "kv-int8", "magnitude-50", "2:4", "narrow-50", "distilled-50"),
    context_length=24, score_bytes=600, calibration_windows=2, heal_steps=2, decode_tokens=4, rounds=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train_from_iterator([TEXT], 280, special_tokens=["<|endoftext|>"])
    tokenizer.save(folder)
    save_pretrained(small_model(vocab_size=tokenizer.vocab_size, num_layers=2, d_ff=64), folder, folder / "hf")
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture(scope="module")
def compared(model_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "c"
    said = []
    result = compress(model_folder / "hf", [str(model_folder / "text.txt")], SETTINGS, out=out, say=said.append)
    return out, result, said


def row_of(result, name):
    return next(row for row in result["rows"] if row["name"] == name)


def test_every_variant_has_its_row_and_its_folder(compared):
    out, result, said = compared
    assert [row["name"] for row in result["rows"]] == list(SETTINGS.names) and len(said) == len(SETTINGS.names)
    for row in result["rows"]:
        folder = out / "variants" / row["name"].replace(":", "-")
        assert row["disk_bytes"] == sum(file.stat().st_size for file in folder.iterdir())
        assert row["tokens_per_second"] > 0 and row["speed"] > 0 and 0 < row["bits_per_byte"] < 30
    assert {row["name"]: row["runner"] for row in result["rows"]} == {
        name: "torch" if name in ("fp32", "fp8", "kv-int8") else "compiled" for name in SETTINGS.names
    }
    assert row_of(result, "magnitude-50")["zeros"] > 0.2 < row_of(result, "2:4")["zeros"]
    assert any(row["fast"] for row in result["rows"]) and any(row["small"] for row in result["rows"])


def test_bytes_are_those_of_what_is_kept(compared):
    out, result, _ = compared
    dense = row_of(result, "fp32")
    assert dense["weight_bytes"] == 4 * dense["parameters"] == 2 * row_of(result, "bf16")["weight_bytes"]
    assert row_of(result, "int8")["weight_bytes"] == weight_bytes(load_quantized(out / "variants" / "int8"))
    assert row_of(result, "int8")["weight_bytes"] < 0.6 * row_of(result, "bf16")["weight_bytes"]
    assert row_of(result, "narrow-50")["parameters"] < dense["parameters"]
    heads = 2 * 2 * 2  # layers, keys and values, heads of 8 numbers
    assert dense["cache_bytes_per_token"] == heads * 8 * 4
    assert row_of(result, "kv-int8")["cache_bytes_per_token"] == heads * (8 + 4)


def test_scores_are_those_of_the_saved_models(compared, model_folder):
    out, result, _ = compared
    source = read_source(model_folder / "hf")
    texts = read_texts(model_folder, [str(model_folder / "text.txt")], source.tokenizer, SETTINGS)
    assert sum(len(text) for text in texts.scored) <= SETTINGS.score_bytes
    for name, load in (("fp32", load_pretrained), ("narrow-50", load_pretrained), ("fp8", load_quantized)):
        model = load(out / "variants" / name)
        score = bits_per_byte(model, source.tokenizer, texts.scored, context_length=SETTINGS.context_length)
        assert score.bits_per_byte == pytest.approx(row_of(result, name)["bits_per_byte"], rel=1e-6)
    assert load_pretrained(out / "variants" / "narrow-50").config.blocks[0].ffn.d_ff == 32
    assert load_pretrained(out / "variants" / "distilled-50").config.num_layers == 1


def test_an_interrupted_comparison_goes_on_after_what_is_finished(compared, model_folder, tmp_path, monkeypatch):
    files = [str(model_folder / "text.txt")]
    settings = CompressSettings(methods=("int8",), context_length=24, score_bytes=400, decode_tokens=2, rounds=1)
    real, made = frontier.make_variant, []

    def stopping(name, *rest):
        made.append(name)
        if len(made) == 2:
            raise KeyboardInterrupt
        return real(name, *rest)

    monkeypatch.setattr(frontier, "make_variant", stopping)
    with pytest.raises(KeyboardInterrupt):
        compress(model_folder / "hf", files, settings, out=tmp_path / "c")
    kept = (tmp_path / "c" / "rows" / "fp32.json").read_bytes()
    result = compress(model_folder / "hf", files, settings, out=tmp_path / "c")
    assert made == ["fp32", "bf16", "bf16", "int8"] and len(result["rows"]) == 3
    assert (tmp_path / "c" / "rows" / "fp32.json").read_bytes() == kept
    with pytest.raises(ValueError, match="other settings"):
        compress(model_folder / "hf", files, SETTINGS, out=tmp_path / "c")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_text("")
    with pytest.raises(ValueError, match="already holds something"):
        compress(model_folder / "hf", files, settings, out=tmp_path / "d")


def test_the_page_and_the_table_show_every_variant(compared):
    out, result, _ = compared
    page, text = write_compression_report(out), compression_text(out)
    html = page.read_text("utf-8")
    for name in SETTINGS.names:
        assert name in html and name in text
    assert html.count("<svg") == 2 and "://" not in html.replace("http://www.w3.org", "")
    assert page.read_bytes() == write_compression_report(out).read_bytes()
    with pytest.raises(ValueError, match="no result.json"):
        compression_text(out / "rows")
    json.dumps(result, allow_nan=False)


def test_the_frontier_is_what_nothing_beats():
    points = [(1.0, 5.0, 30), (1.1, 9.0, 20), (1.2, 8.0, 10), (1.1, 9.0, 20), (1.0, 4.0, 30)]
    rows = [{"bits_per_byte": b, "speed": t, "disk_bytes": d} for b, t, d in points]
    marked = mark_frontier(rows)
    assert [row["fast"] for row in marked] == [True, True, False, True, False]
    assert [row["small"] for row in marked] == [True, True, True, True, True]


def test_healing_lowers_the_loss_and_distillation_uses_the_model(model_folder):
    source = read_source(model_folder / "hf")
    settings = CompressSettings(methods=(), context_length=24, score_bytes=600, heal_steps=12, heal_rate=1e-2)
    texts = read_texts(model_folder, [str(model_folder / "text.txt")], source.tokenizer, settings)
    losses = {}
    for steps in (0, 12):
        few = CompressSettings(methods=(), context_length=24, score_bytes=600, heal_steps=steps, heal_rate=1e-2)
        seen = []

        def healed(model, objective, source, few=few, seen=seen):
            heal(model, objective, source, few, lambda step, _model, run: seen.append(step))

        variant = make_variant("shallow-50", source.model, texts, few, healed)
        score = bits_per_byte(variant.model, source.tokenizer, texts.scored, context_length=24)
        losses[steps] = score.bits_per_byte
        assert len(seen) == steps
    assert losses[12] < 0.9 * losses[0]


def test_distilled_variants_learn_from_a_cache_as_from_the_model(model_folder, tmp_path):
    """With every token kept, the weights are those that the running model teaches; others than text alone would."""
    source = read_source(model_folder / "hf")
    few = CompressSettings(methods=(), context_length=24, score_bytes=600, heal_steps=6, heal_rate=1e-2)
    texts = read_texts(model_folder, [str(model_folder / "text.txt")], source.tokenizer, few)
    cache = write_teacher_logits(
        source.model, texts.drawn_once(few.heal_batch, few.heal_steps, few.seed), tmp_path / "logits",
        tokenizer=source.tokenizer, k=source.model.config.vocab_size, temperature=few.temperature, dtype="float32",
    )  # fmt: skip

    def weights_of(name, logits):
        def healed(model, objective, batches):
            heal(model, objective, batches, few, lambda *_: None)

        made = make_variant(name, source.model, texts, few, healed, logits)
        return torch.cat([p.detach().flatten() for p in made.model.parameters()])

    online, cached, alone = (weights_of(*each) for each in (("distilled-50", None), ("distilled-50", cache),
                                                            ("shallow-50", None)))  # fmt: skip
    assert float((cached - online).abs().mean()) < 0.02 * float((alone - online).abs().mean())


def test_a_comparison_writes_the_cache_once_and_refuses_another(model_folder, tmp_path, monkeypatch):
    files, few = [str(model_folder / "text.txt")], {"context_length": 24, "score_bytes": 300, "calibration_windows": 1}
    few |= {"heal_steps": 1, "heal_batch": 2, "decode_tokens": 1, "rounds": 1, "methods": ("distilled-50",)}
    seen, logits = [], tmp_path / "logits"

    def progress(stage, done, total):
        seen.append((stage, done, total))

    def compare(name, **options):
        settings = CompressSettings(**(few | options))
        return compress(model_folder / "hf", files, settings, out=tmp_path / name, logits=logits, progress=progress)

    compare("a", top_k=9)
    cache = TeacherLogits.open(logits)
    assert (cache.k, cache.temperature, cache.header["rows"]) == (9, 2.0, 2)
    assert ("teacher's logits", 2, 2) in seen
    monkeypatch.setattr("groundup.compression.teacher_writing._kept", None)
    compare("b", top_k=9, heal_rate=1e-3)
    with pytest.raises(ValueError, match="other text, or the same in other rows"):
        compare("c", top_k=9, seed=5)
    with pytest.raises(ValueError, match="k=9, and 10 is asked for"):
        compare("d", top_k=10)
    with pytest.raises(ValueError, match="nothing would learn from them"):
        compare("e", methods=())
    assert not (tmp_path / "e").exists()


def test_a_rate_is_measured_on_all_tokens_even_for_a_model_that_would_end_at_once():
    tokenizer = Tokenizer.train_from_iterator(["the cat"], 259, special_tokens=["<|endoftext|>"])
    model, end = small_model(vocab_size=260), tokenizer.end_of_text
    with torch.no_grad():
        model.head_weight[end] = model.hidden(torch.tensor([[end]]))[0, 0]
    engine, counts = Engine(model, tokenizer), []
    assert engine.generate([end], temperature=0, max_tokens=6).finish_reason == "end"
    real = engine.generate

    def counting(*args, **options):
        counts.append(len((answer := real(*args, **options)).tokens))
        return answer

    engine.generate = counting
    assert decode_rate(engine, 6) > 0 and counts == [6]
