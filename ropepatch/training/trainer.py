"""The Hugging Face Trainer, with checkpoints that are whole or absent."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import rotate_checkpoints

from ropepatch.checkpoint import save_pretrained, write_sidecar
from ropepatch.training.recipe import Recipe
from ropepatch.training.run_directory import RunDirectory
from ropepatch.training.sections import TrainingRecipe

Samples = Dataset[dict[str, Tensor]] | Sequence[dict[str, Tensor]]


class RunTrainer(Trainer):
    """Writes each checkpoint aside and renames it: a crash leaves the one before."""

    def __init__(
        self,
        *,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        run: RunDirectory,
        embedding_learning_rate: float | None = None,
        **options: Any,
    ) -> None:
        self.used_cache = model.config.use_cache  # the Trainer turns it off for good
        super().__init__(model=model, processing_class=tokenizer, **options)
        self.trained = model
        self.tokenizer = tokenizer
        self.run = run
        self.embedding_learning_rate = embedding_learning_rate
        self.staging: Path | None = None

    @property
    def samples(self) -> Iterator[dict[str, Tensor]]:
        """What it trains on, in order."""
        return iter(self.train_dataset)  # type: ignore[arg-type]

    def publish_model(self, name: str) -> None:
        """Save the model and its tokenizer as a directory of the run."""
        self.trained.config.use_cache = self.used_cache
        with self.run.publish(name) as staging:
            save_pretrained(self.trained, staging / name, self.tokenizer)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's own, with the input embeddings in a group of their own if they have a rate."""
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if is_new and self.embedding_learning_rate is not None:
            weight = self.trained.get_input_embeddings().weight
            for group in [*optimizer.param_groups]:
                others = [parameter for parameter in group["params"] if parameter is not weight]
                if len(others) < len(group["params"]):
                    alone = {"params": [weight], "lr": self.embedding_learning_rate}
                    group["params"] = others
                    optimizer.add_param_group({**group, **alone})
        return optimizer

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not next(model.parameters()).is_meta:  # of a dry run, which has no weights to move
            super()._move_model_to_device(model, device)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staging or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self.run.publish(f"checkpoint-{self.state.global_step}") as self.staging:
            super()._save_checkpoint(model, trial)
        self.staging = None
        rotate_checkpoints(str(self.run.path), save_total_limit=self.args.save_total_limit)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        super()._save(output_dir, state_dict)
        if isinstance(self.trained, PeftModel):
            write_sidecar(self.trained, Path(output_dir or self.run.path))


def make_trainer(
    recipe: Recipe,
    run: RunDirectory,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Samples,
    callbacks: Sequence[TrainerCallback] = (),
) -> RunTrainer:
    """The Trainer of a recipe whose model and data are there."""
    trainer = RunTrainer(
        model=model,
        args=training_arguments(recipe.training, recipe.output_dir),
        train_dataset=data,
        tokenizer=tokenizer,
        callbacks=[*callbacks],
        run=run,
        embedding_learning_rate=recipe.training.embedding_learning_rate,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def training_arguments(recipe: TrainingRecipe, output_dir: str) -> TrainingArguments:
    """The recipe in the Trainer's words."""
    schedule, options = _schedule(recipe)
    return TrainingArguments(
        output_dir=output_dir,
        max_steps=recipe.max_steps,
        per_device_train_batch_size=recipe.per_device_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        adam_beta2=recipe.adam_beta2,
        optim="adamw_torch_fused",
        lr_scheduler_type=schedule,
        lr_scheduler_kwargs=options,
        warmup_steps=recipe.warmup_steps,
        max_grad_norm=recipe.max_grad_norm,
        seed=recipe.seed,
        bf16=recipe.bf16,
        torch_compile=recipe.torch_compile,
        activation_checkpointing=recipe.gradient_checkpointing,
        activation_checkpointing_kwargs={
            "use_reentrant": False,
            "offload": recipe.offload_activations,
        },
        use_liger_kernel=recipe.liger,
        liger_kernel_config=_liger_kernels(recipe),
        save_strategy="steps",
        save_steps=recipe.save_steps,
        save_total_limit=recipe.keep_checkpoints,
        logging_steps=recipe.logging_steps,
        logging_first_step=True,
        # Otherwise a NaN loss is logged as the average of the losses before it.
        logging_nan_inf_filter=False,
        report_to=recipe.report_to or "none",
        disable_tqdm=True,
        use_cpu=not torch.accelerator.is_available(),
        # The mixture is random by index already: in order, a resumed run sees what it would have.
        train_sampling_strategy="sequential",
        # Columns such as loss weights are for the loss, not for the model's forward.
        remove_unused_columns=False,
        dataloader_pin_memory=torch.accelerator.is_available(),
    )


def _liger_kernels(recipe: TrainingRecipe) -> dict[str, bool]:
    """Liger's own choice for a model, without what would undo something or reach other models."""
    # Its rotary kernel is put into a module of transformers, its loss into torch's own function.
    kernels = {"rope": False, "cross_entropy": False}
    return kernels | ({"fused_linear_cross_entropy": False} if recipe.chunked_loss else {})


def _schedule(recipe: TrainingRecipe) -> tuple[str, dict[str, Any]]:
    ratio = recipe.min_lr_ratio
    match recipe.schedule:
        case "cosine":
            return "cosine_with_min_lr", {"min_lr_rate": ratio}
        case "warmup_stable_decay":
            decay = {"num_decay_steps": recipe.decay_steps, "min_lr_ratio": ratio}
            return "warmup_stable_decay", {**decay, "decay_type": "1-sqrt"}
        case "linear":
            return "linear", {}
        case "constant":
            return "constant_with_warmup", {}
