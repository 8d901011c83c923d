"""TRL's SFTTrainer with a loss that looks only where there is something to learn."""

import torch
from torch.nn.functional import cross_entropy
from trl import SFTTrainer

# Options of models that change the scores after the output layer (Gemma, Granite, Cohere)
SCALED = ("final_logit_softcapping", "logits_scaling", "logit_scale")


class AnswerTrainer(SFTTrainer):
    """SFTTrainer that, on a CPU, scores the vocabulary at labelled positions only; elsewhere it is TRL's own.

    A question's tokens have the label -100: their scores, one for each word of the vocabulary, would be computed and thrown away.
    The loss is TRL's `nll`: the mean over the labelled tokens of all rows that are added up in a step.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs or not self._plain(inputs):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"][:, 1:]  # a position predicts the token after it
        learnt = labels != -100
        whole = self.accelerator.unwrap_model(model)
        whole = whole.get_base_model() if hasattr(whole, "get_base_model") else whole  # PEFT's layers sit inside it
        told = {name: value for name, value in inputs.items() if name != "labels"}
        with self.accelerator.autocast():
            hidden = whole.base_model(**told, use_cache=False).last_hidden_state[:, :-1][learnt]
            scores = whole.get_output_embeddings()(hidden)
        loss = cross_entropy(scores.float(), labels[learnt], reduction="sum")
        items = learnt.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        return loss / items.clamp(min=1)  # a batch of questions alone teaches nothing, and breaks nothing

    def _plain(self, inputs) -> bool:
        """Whether the loss is just the scores' cross entropy, here, in one process: all else is left to TRL."""
        config = self.accelerator.unwrap_model(self.model).config
        return (
            inputs["input_ids"].device.type == "cpu"
            and self.accelerator.num_processes == 1
            and self.args.loss_type == "nll"
            and not (self.compute_loss_func or self.label_smoother or self.aux_loss_enabled)
            and not any(getattr(config, name, None) for name in SCALED)
            and not getattr(getattr(self.model, "active_peft_config", None), "is_prompt_learning", False)
        )
