"""The Hugging Face Trainer, with checkpoints that are whole or absent."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import rotate_checkpoints

from ropepatch.checkpoint import save_pretrained, write_sidecar
from ropepatch.precision import DTYPES
from ropepatch.training.checkpoints import seal
from ropepatch.training.distributed import distributed_arguments
from ropepatch.training.finite_trainer import FiniteTrainer
from ropepatch.training.processes import from_main, processes
from ropepatch.training.run_directory import RunDirectory
from ropepatch.training.sections import DistributedRecipe, TrainingRecipe

Samples = Dataset[dict[str, Tensor]] | Sequence[dict[str, Tensor]]


class RunTrainer(FiniteTrainer):
    """Writes each checkpoint aside and renames it: a crash leaves the one before."""

    def __init__(
        self,
        *,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        run: RunDirectory,
        **options: Any,
    ) -> None:
        self.used_cache = model.config.use_cache  # the Trainer turns it off for good
        super().__init__(model=model, processing_class=tokenizer, **options)
        if model.config.is_encoder_decoder:
            # T5 takes the number of items, and makes a mean over its own tokens all the same.
            self.model_accepts_loss_kwargs = False
        self.trained = model
        self.tokenizer = tokenizer
        self.run = run
        self.shared_by = run.recipe.distributed.shared_by
        self.staging: Path | None = None

    def publish_model(self, name: str) -> None:
        """Save the model and its tokenizer as a directory of the run."""
        self.require_finite_weights()
        self.trained.config.use_cache = self.used_cache
        with self._published(name) as staging:
            whole = self._whole_weights() if self.is_fsdp_enabled else None
            if self.args.should_save:
                save_pretrained(self.trained, staging / name, self.tokenizer, state_dict=whole)
                seal(staging / name)

    def _whole_weights(self) -> dict[str, Tensor]:
        """The weights that each process has a part of, put together by all for the main one."""
        weights: dict[str, Tensor] = self.accelerator.get_state_dict(self.model)
        if isinstance(self.trained, PeftModel):
            return weights
        # A tied weight is there under all of its names, and no more told by its storage.
        names = {name for name, _ in self.trained.named_parameters()}
        names |= {name for name, _ in self.trained.named_buffers()}
        return {name: weight for name, weight in weights.items() if name in names}

    @contextmanager
    def _published(self, name: str) -> Iterator[Path]:
        """`publish` of the main process, whose directory aside all of them write to."""
        with ExitStack() as stack:
            staging = from_main(lambda: stack.enter_context(self.run.publish(name)))
            yield staging
            self.accelerator.wait_for_everyone()
        self.accelerator.wait_for_everyone()

    def create_accelerator_and_postprocess(self) -> None:
        """As the Trainer does; and FSDP on CPUs, where accelerate trains by DDP without a word.

        It knows FSDP for accelerators alone (AcceleratorState.__init__); all that follows from that
        one type works on CPUs with gloo.
        """
        super().create_accelerator_and_postprocess()
        if not self.args.fsdp:
            return
        state = self.accelerator.state
        if state.distributed_type == DistributedType.MULTI_CPU:
            # Whoever makes an AcceleratorState later reads the type from the other one.
            state.distributed_type = processes().distributed_type = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            self.is_fsdp_enabled = True
        if not self.accelerator.is_fsdp2:
            raise RuntimeError(f"FSDP2 was asked for, and accelerate made {state.distributed_type}")
        if state.mixed_precision in ("bf16", "fp16"):
            # accelerate's own would also add up gradients, and round the loss, in 16 bits.
            state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=DTYPES[state.mixed_precision], reduce_dtype=torch.float32
            )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's own, with the input embeddings in a group of their own if they have a rate."""
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        rate = self.run.recipe.training.embedding_learning_rate
        if is_new and rate is not None:
            weight = self.trained.get_input_embeddings().weight
            for group in [*optimizer.param_groups]:
                others = [parameter for parameter in group["params"] if parameter is not weight]
                if len(others) < len(group["params"]):
                    alone = {"params": [weight], "lr": rate}
                    group["params"] = others
                    optimizer.add_param_group({**group, **alone})
        return optimizer

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not next(model.parameters()).is_meta:  # of a dry run, which has no weights to move
            super()._move_model_to_device(model, device)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staging or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.require_finite_weights()
        name = f"checkpoint-{self.state.global_step}"
        with self._published(name) as self.staging:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal(self.staging / name)
        self.staging = None
        if self.args.should_save:
            rotate_checkpoints(str(self.run.path), save_total_limit=self.args.save_total_limit)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        super()._save(output_dir, state_dict)
        if isinstance(self.trained, PeftModel) and self.args.should_save:
            write_sidecar(self.trained, Path(output_dir or self.run.path))


def make_trainer(
    run: RunDirectory,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Samples,
    callbacks: Sequence[TrainerCallback] = (),
) -> RunTrainer:
    """The Trainer of a run whose model and data are there."""
    recipe = run.recipe
    trainer = RunTrainer(
        model=model,
        args=training_arguments(recipe.training, recipe.output_dir, recipe.distributed),
        train_dataset=data,
        # The tokenizer's own would add a mask of ones, which lets packed documents see each other.
        data_collator=default_data_collator,
        tokenizer=tokenizer,
        callbacks=[*callbacks],
        run=run,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def training_arguments(
    recipe: TrainingRecipe, output_dir: str, distributed: DistributedRecipe
) -> TrainingArguments:
    """The recipe in the Trainer's words; its precision is chosen by now."""
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
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16",
        torch_compile=recipe.torch_compile,
        **_activation_checkpointing(recipe),
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
        run_name=Path(output_dir).name,
        disable_tqdm=True,
        use_cpu=not torch.accelerator.is_available(),
        # The mixture is random by index already: in order, a resumed run sees what it would have.
        train_sampling_strategy="sequential",
        # Every weight that trains is used in every step; looking for others would cost a pass.
        ddp_find_unused_parameters=False,
        # Columns such as loss weights are for the loss, not for the model's forward.
        remove_unused_columns=False,
        dataloader_pin_memory=torch.accelerator.is_available(),
        **distributed_arguments(distributed),
    )


def _activation_checkpointing(recipe: TrainingRecipe) -> dict[str, Any]:
    options = {"use_reentrant": False, "offload": recipe.offload_activations}
    return {
        "activation_checkpointing": recipe.gradient_checkpointing,
        "activation_checkpointing_kwargs": options,
    }


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
