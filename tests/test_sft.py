"""utils/sft.py: where there are labels it is TRL's loss and gradient, elsewhere TRL itself."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from utils import models, profiles
from utils.sft import AnswerTrainer

ROWS = Dataset.from_list(
    [
        dict(prompt=[dict(role="user", content=ask)], completion=[dict(role="assistant", content=answer)])
        for ask, answer in (
            ("What is rank?", "A count."),
            ("And r, in a long question of many words?", "Its bound."),
            ("Why?", "So."),
        )
    ]
)


def trainer(kind, folder, adapter=True, **config):
    """One of the two trainers on a small random Llama in fp32: a question of shapes and sums, not of what it knows."""
    tokenizer = models.load_decoder(profiles.get("smoke"))[1]
    torch.manual_seed(0)
    sizes = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=len(tokenizer)
    )
    model = LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=tokenizer.pad_token_id, **config))
    options = dict(
        per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=2, logging_steps=1, bf16=False
    )
    options |= dict(use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, completion_only_loss=True)
    lora = LoraConfig("CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False) if adapter else None
    torch.manual_seed(0)
    args = SFTConfig(str(folder), activation_checkpointing=False, **options)
    return kind(model, args=args, train_dataset=ROWS, processing_class=tokenizer, peft_config=lora)


@pytest.mark.parametrize("adapter", [True, False])
def test_loss_gradients_and_training_are_those_of_trl(tmp_path, adapter):
    found = []
    for kind in (SFTTrainer, AnswerTrainer):
        each = trainer(kind, tmp_path, adapter)
        batch = each.data_collator([each.train_dataset[i] for i in range(3)])
        items = (batch["labels"] != -100).sum()
        losses = []
        for number in (
            None,
            items,
            2 * items,
        ):  # alone, as the Trainer counts, and with as many in another batch of the step
            each.model.zero_grad()
            loss = each.compute_loss(each.model, dict(batch), num_items_in_batch=number)
            loss.backward()
            losses.append(loss.item())
        grads = torch.cat([p.grad.flatten() for p in each.model.parameters() if p.requires_grad and p.grad is not None])
        each.train()
        found.append((losses, grads, [row["loss"] for row in each.state.log_history if "loss" in row]))
    (trl, g_trl, log_trl), (ours, g_ours, log_ours) = found
    assert ours == pytest.approx(trl, abs=1e-5) and trl[0] == pytest.approx(2 * trl[2])
    torch.testing.assert_close(g_ours, g_trl, atol=1e-6, rtol=1e-3)
    assert log_ours == pytest.approx(log_trl, abs=1e-4) and len(log_ours) == 2


def test_a_batch_of_questions_alone_breaks_nothing(tmp_path):
    each = trainer(AnswerTrainer, tmp_path)
    batch = each.data_collator([each.train_dataset[i] for i in range(2)])
    batch["labels"] = torch.full_like(batch["labels"], -100)
    for items in (None, torch.tensor(0)):
        loss = each.compute_loss(each.model, dict(batch), num_items_in_batch=items)
        loss.backward()
        assert loss.item() == 0


@pytest.mark.parametrize("name", ["final_logit_softcapping", "logit_scale", "logits_scaling"])
def test_what_changes_the_scores_is_left_to_trl(tmp_path, monkeypatch, name):
    each = trainer(AnswerTrainer, tmp_path)
    batch = each.data_collator([each.train_dataset[0]])
    asked = []
    monkeypatch.setattr(SFTTrainer, "compute_loss", lambda *_, **__: asked.append(name))
    each.compute_loss(each.model, dict(batch))
    assert not asked
    each.model.config.update({name: 30.0})
    each.compute_loss(each.model, dict(batch))
    assert asked == [name]
