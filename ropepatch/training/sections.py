"""The sections of a recipe: what each key means, and which values contradict each other."""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from ropepatch.errors import MethodError
from ropepatch.methods import make_method
from ropepatch.training.mixture import Shares
from ropepatch.training.skipped_positions import Skipping

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
DataType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TokenizerRecipe:
    """A byte-level BPE tokenizer, trained on the corpus of the run."""

    vocab_size: Count = 2048
    keys: Whole = 64  #: reserved single-token keys for retrieval sequences
    values: Whole = 64  #: reserved single-token values


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelRecipe:
    """Either a checkpoint to extend (`path`) or a model to train from nothing (`config`)."""

    path: str | None = None
    config: dict[str, Any] | None = None  #: `model_type` (default llama) and fields of its config
    tokenizer: TokenizerRecipe | None = None  #: with `config` only
    induction_circuit: bool = False  #: with `config` only: see training/induction.py
    dtype: DataType = "float32"  #: of the weights while they are trained
    save_dtype: DataType | None = None  #: of the saved model; `dtype` when not given
    quantization: Literal["nf4"] | None = None  #: with lora only: see training/quantization.py

    def __post_init__(self) -> None:
        if (self.path is None) == (self.config is None):
            given = "both" if self.path is not None else "neither"
            raise ValueError(f"takes either path or config; found {given}")
        if self.path is not None and self.tokenizer is not None:
            raise ValueError("tokenizer is trained for a config; a path brings its own")
        if self.path is not None and self.induction_circuit:
            raise ValueError("induction_circuit is for the random weights of a config")
        if self.path is None and self.quantization is not None:
            raise ValueError("quantization is for the weights of a checkpoint; give its path")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PatchRecipe:
    """Arguments of `patch_model`."""

    method: str = "yarn"
    factor: Annotated[float, Field(ge=1)] = 4.0
    original_max_position_embeddings: Count | None = None  #: for configs that do not say it
    part: Literal["both", "encoder", "decoder"] = "both"  #: of an encoder–decoder model
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            make_method(self.method, factor=self.factor, **self.options)
        except MethodError as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoraRecipe:
    """A low-rank adapter (arXiv 2106.09685), with LongLoRA's trainable extras (arXiv 2309.12307)."""

    r: Count = 16
    alpha: Count = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["attention", "mlp", "all"] = "all"  #: which projections get an adapter
    train_embeddings: bool = False
    train_norms: bool = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PositionsRecipe:
    """Short sequences with positions of long ones: see training/skipped_positions.py."""

    kind: Skipping = "pose"
    target: Count  #: tokens of context whose positions are trained
    chunks: Annotated[int, Field(ge=2)] = 2  #: pieces of a sequence between which PoSE skips


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataRecipe:
    """Which text, and how sequences are made of it."""

    source: str = "stdlib"  #: "stdlib", or a text file or a directory of text files
    split: Literal["train", "held_out"] = "train"
    length: Annotated[int, Field(ge=2)] = 256  #: tokens per sequence
    target_length: Count | None = None  #: encoder–decoder models: last tokens, for the decoder
    seed: Whole = 0
    mixture: Shares = dataclasses.field(default_factory=Shares)
    positions: PositionsRecipe | None = None

    def __post_init__(self) -> None:
        if self.positions is not None:
            self._check_positions(self.positions)
        if self.target_length is None:
            return
        if self.target_length >= self.length:
            raise ValueError(
                f"target_length ({self.target_length}) leaves nothing of length ({self.length}) "
                "to the encoder"
            )
        if self.mixture.need_keys:
            raise ValueError(
                "retrieval and drills are for causal models; with target_length, set "
                "mixture.retrieval and mixture.drill_phase to 0"
            )

    def _check_positions(self, positions: PositionsRecipe) -> None:
        if positions.target <= self.length:
            raise ValueError(
                f"positions.target ({positions.target}) must be more than length ({self.length}): "
                "the context to train for, and the tokens to do it with"
            )
        if positions.chunks > self.length:
            raise ValueError(f"positions.chunks ({positions.chunks}) exceed length ({self.length})")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingRecipe:
    """Optimisation, and where the time goes."""

    max_steps: Count
    per_device_batch_size: Count = 8
    gradient_accumulation: Count = 1
    learning_rate: Positive
    embedding_learning_rate: Positive | None = None  #: learning_rate when not given
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.95
    warmup_steps: Whole = 0
    schedule: Literal["cosine", "warmup_stable_decay", "linear", "constant"] = "cosine"
    decay_steps: Whole = 0  #: for warmup_stable_decay: the last steps, over which the rate falls
    min_lr_ratio: Share = 0.0  #: of learning_rate, reached on the last step
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    seed: Whole = 0
    bf16: bool = False  #: autocast
    torch_compile: bool = False
    gradient_checkpointing: bool = False
    offload_activations: bool = False  #: those that checkpointing keeps, to the host's memory
    chunked_loss: bool = False  #: never hold all logits; see training/chunked_loss.py
    liger: bool = False  #: Liger's kernels, but for that of rotary positions; needs CUDA
    threads: Count | None = None  #: torch.set_num_threads
    save_steps: Count = 100
    keep_checkpoints: Count = 2
    logging_steps: Count = 10
    report_to: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if self.warmup_steps + self.decay_steps > self.max_steps:
            raise ValueError(
                f"warmup_steps + decay_steps ({self.warmup_steps} + {self.decay_steps}) "
                f"exceed max_steps ({self.max_steps})"
            )
        if (self.schedule == "warmup_stable_decay") != (self.decay_steps > 0):
            raise ValueError("decay_steps and schedule: warmup_stable_decay need each other")
        if self.offload_activations and not self.gradient_checkpointing:
            raise ValueError(
                "offload_activations moves what gradient_checkpointing keeps; set that too"
            )
