"""Networks that nobody here wrote, and the Trainer that goes with them. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: adapters)")
pytest.importorskip("accelerate", reason="accelerate, which the Trainer needs, is not installed (extra: adapters)")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

from sparsify.adapters.transformers import FILE, SparsifyCallback  # noqa: E402
from sparsify.errors import CheckpointError, RecipeError  # noqa: E402
from sparsify.topology.layers import find_layers  # noqa: E402
from sparsify.training.own_loop import SparseOptimizer  # noqa: E402

TOKENS = torch.arange(6)[None] % 11
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def bert() -> torch.nn.Module:
    config = transformers.BertConfig(vocab_size=11, max_position_embeddings=16, **SIZES)
    return transformers.BertForSequenceClassification(config)


def gpt2() -> torch.nn.Module:
    config = transformers.GPT2Config(vocab_size=11, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config)


def vit() -> torch.nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=8, patch_size=4, **SIZES))


MODELS = {
    "bert": (bert, {"input_ids": TOKENS, "labels": torch.tensor([1])}, {}),
    "gpt2": (gpt2, {"input_ids": TOKENS, "labels": TOKENS}, {"*.c_attn": {"parts": 3}}),
    "vit": (vit, {"pixel_values": torch.randn(1, 3, 8, 8), "labels": torch.tensor([1])}, {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_train_sparse_in_three_lines(name):
    build, batch, rules = MODELS[name]
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparse = SparseOptimizer(model, optimizer, batch, steps=12, sparsity=0.8, delta_t=3, layers=rules)
    counts, first, start = sparse.masks.nonzeros(), None, sparse.masks.digest()
    for _ in range(12):
        loss = model(**batch).loss
        loss.backward()
        sparse.step()
        first = loss.item() if first is None else first
    assert loss.item() < first and sparse.state.updates == 3
    assert sparse.masks.nonzeros() == counts and sparse.masks.digest() != start
    assert sparse.masks.sparsity() == pytest.approx(0.8, abs=5e-3)  # counts of small layers are whole
    for weight, mask in sparse.masks.items():
        assert not model.get_parameter(weight)[~mask].any()


def test_every_matrix_of_bert_and_no_embedding_is_sparse():
    model, batch = bert(), MODELS["bert"][1]
    sparse = {layer.name for layer in find_layers(model, batch) if layer.sparse}
    assert sparse == {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


def test_gpt2_keeps_inputs_first_and_ties_its_embedding():
    layers = {layer.name: layer for layer in find_layers(gpt2(), *MODELS["gpt2"][1:])}
    attention = layers["transformer.h.0.attn.c_attn.weight"]
    assert attention.shape == (16, 48) and attention.axis == 1 and attention.outputs == 48
    assert attention.parts == 3 and attention.matrix_shape == (16, 16)
    assert not layers["transformer.wte.weight"].sparse and "lm_head.weight" not in layers


class Sequences(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": (torch.arange(6) * (index + 1)) % 11, "labels": torch.tensor(index % 2)}


def trainer(folder: Path, callback: SparsifyCallback, data: object = None, **options: object):
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=12, per_device_train_batch_size=4, learning_rate=1e-2, save_steps=6, report_to=[],
        gradient_accumulation_steps=2, use_cpu=True, disable_tqdm=True, logging_strategy="no", **options,
    )  # fmt: skip
    transformers.set_seed(0)
    return transformers.Trainer(bert(), arguments, train_dataset=data or Sequences(), callbacks=[callback])


def test_the_trainer_trains_sparse_and_resumes(tmp_path):
    settings = {"sparsity": 0.8, "delta_t": 3}
    whole = SparsifyCallback(**settings)
    model = trainer(tmp_path / "a", whole)
    model.train()
    sparse = whole.sparse
    assert sparse.state.step == 12 and sparse.state.updates == 3
    assert sparse.masks.sparsity() == pytest.approx(0.8, abs=5e-3)  # counts of small layers are whole
    for name, mask in sparse.masks.items():
        weight = model.model.get_parameter(name)
        assert not weight[~mask].any() and not sparse.state.optimizer.state[weight]["exp_avg_sq"][~mask].any()

    again = SparsifyCallback(**settings)
    other = trainer(tmp_path / "a", again)
    other.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    assert again.sparse.masks.digest() == sparse.masks.digest() and again.sparse.state.updates == 3
    for name in sparse.masks:
        torch.testing.assert_close(other.model.get_parameter(name), model.model.get_parameter(name))

    (tmp_path / "a" / "checkpoint-6" / FILE).unlink()
    with pytest.raises(CheckpointError, match="without this callback"):
        trainer(tmp_path / "a", SparsifyCallback()).train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))


def test_data_without_numbers_needs_a_sample(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from (Sequences()[index] for index in range(96))

    with pytest.raises(RecipeError, match="Give SparsifyCallback a sample"):
        trainer(tmp_path, SparsifyCallback(), Stream()).train()
    callback = SparsifyCallback({"input_ids": TOKENS}, delta_t=3)
    trainer(tmp_path, callback, Stream(), save_strategy="no").train()
    assert callback.sparse.state.updates == 3
