"""The sections of a recipe: what each key means, and which values contradict each other."""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from ropepatch.errors import MethodError
from ropepatch.methods import make_method
from ropepatch.methods.fitting import require_fit
from ropepatch.precision import PrecisionOption
from ropepatch.training.mixture import Shares
from ropepatch.training.packing import Packing
from ropepatch.training.skipped_positions import Skips

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
DataType = Literal["float32", "bfloat16", "float16"]
Preset = Literal["lora", "longlora", "longlora-norms", "full"]


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
    replace: bool = False  #: put it in the place of scaling that the checkpoint has
    fit: Literal["profile"] | None = None  #: start a new score bias from scores on the data
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            method = make_method(self.method, factor=self.factor, **self.options)
            if self.fit is not None:
                require_fit(method)
        except MethodError as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stage:
    """Some steps of a run with a length or a patch of their own; what is not given stays."""

    steps: Count
    length: Annotated[int, Field(ge=2)] | None = None  #: data.length when not given
    factor: Annotated[float, Field(ge=1)] | None = None  #: patch.factor when not given
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  #: change patch.options


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoraRecipe:
    """A low-rank adapter (arXiv 2106.09685), with LongLoRA's trainable extras (arXiv 2309.12307).

    A preset says which weights train; `targets`, `train_embeddings` and `train_norms` change it.
    """

    preset: Preset = "lora"  #: see training/lora.py; full: all weights, without an adapter
    r: Count = 16
    alpha: Count = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["attention", "mlp", "all"] | None = None  #: projections that get an adapter
    train_embeddings: bool | None = None
    train_norms: bool | None = None
    dora: bool = False  #: magnitudes apart from directions (arXiv 2402.09353)
    rslora: bool = False  #: scaled by alpha/√r instead of alpha/r (arXiv 2312.03732)
    merge: bool = False  #: save the whole model with the adapter merged into it

    def __post_init__(self) -> None:
        changed = [
            field.name
            for field in dataclasses.fields(self)
            if field.name != "preset" and getattr(self, field.name) != field.default
        ]
        if self.preset == "full" and changed:
            raise ValueError(f"preset full has no adapter; leave out {', '.join(changed)}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DatasetRecipe:
    """A dataset of the datasets library; every row is a document."""

    path: str  #: a name on the Hub, or a directory, as for `load_dataset` or by `save_to_disk`
    name: str | None = None  #: of the configuration, for datasets that have several
    split: str = "train"
    revision: str | None = None  #: of the Hub; pins what may change there
    streaming: bool = False  #: download only as much as `max_tokens` needs


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataRecipe:
    """Which text, and how sequences are made of it."""

    source: str = "stdlib"  #: "stdlib", a text or JSON Lines file, or a directory of such files
    split: Literal["train", "held_out"] = "train"  #: of "stdlib"
    files: list[str] = dataclasses.field(default_factory=list)  #: of a directory, such as "*.py"
    dataset: DatasetRecipe | None = None  #: in place of source
    text_field: str = "text"  #: of JSON Lines and datasets
    max_tokens: Count | None = None  #: documents after these are not read; a stream: what is used
    length: Annotated[int, Field(ge=2)] = 256  #: tokens per sequence
    target_length: Count | None = None  #: encoder–decoder models: last tokens, for the decoder
    seed: Whole = 0
    mixture: Shares = dataclasses.field(default_factory=Shares)
    positions: Skips | None = None  #: PoSE and RandPos
    held_out: Whole = 0  #: first documents, kept from training for the evaluation
    packing: Packing | None = None  #: several documents in a sequence; None: windows of single ones

    def __post_init__(self) -> None:
        if self.dataset is not None and self.source != "stdlib":
            raise ValueError(f"takes either source or dataset; found both, source {self.source}")
        if self.files and (self.dataset is not None or self.source == "stdlib"):
            raise ValueError("files chooses from a directory; name that in source")
        if self.packing is not None and self.positions is not None:
            raise ValueError(
                "positions skips in windows of single documents, packing joins several; take one"
            )
        if self.packing is not None and self.target_length is not None:
            raise ValueError("packing is for causal models; with target_length, leave it out")
        if self.target_length is not None and self.mixture.need_keys:
            raise ValueError(
                "retrieval and drills are for causal models; with target_length, set "
                "mixture.retrieval and mixture.drill_phase to 0"
            )

    def check(self, length: int) -> None:
        """Raise ValueError or ConfigError for sequences of `length` tokens."""
        if self.positions is not None:
            self.positions.check(length)
        if self.packing is not None:
            self.packing.check(length)
        if self.target_length is not None and self.target_length >= length:
            raise ValueError(
                f"data.target_length ({self.target_length}) leaves nothing of length ({length}) "
                "to the encoder"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ShiftedAttention:
    """S² attention (LongLoRA, arXiv 2309.12307, §3.2) in training, all of it in evaluation."""

    group: Annotated[int, Field(ge=2, multiple_of=2)]  #: tokens that see each other
    shift: bool = True  #: half of the heads by half a group; without it nothing crosses a border

    def check(self, length: int) -> None:
        """Raise ValueError for sequences that are not made of whole groups."""
        if length > self.group and length % self.group:
            raise ValueError(
                f"length ({length}) must be a multiple of training.shifted_attention.group "
                f"({self.group})"
            )


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
    #: of matrix products, by autocast; auto: bf16 where it is at least as fast as fp32
    precision: PrecisionOption = "auto"
    torch_compile: bool = False
    gradient_checkpointing: bool = False
    shifted_attention: ShiftedAttention | None = None
    offload_activations: bool = False  #: those that checkpointing keeps, to the host's memory
    chunked_loss: bool = False  #: never hold all logits; see training/chunked_loss.py
    liger: bool = False  #: Liger's kernels, but for that of rotary positions; needs CUDA
    threads: Count | None = None  #: torch.set_num_threads
    save_steps: Count = 100
    keep_checkpoints: Count = 2
    logging_steps: Count = 10
    report_to: list[str] = dataclasses.field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _read_bf16(cls, values: Any) -> Any:
        """Accept `bf16: true` or `false`, the name of `precision` in recipes up to version 0.1."""
        if not isinstance(values, dict) or not isinstance(values.get("bf16"), bool):
            return values
        if "precision" in values:
            raise ValueError("takes either precision or bf16, its old name; found both")
        others = {key: value for key, value in values.items() if key != "bf16"}
        return {**others, "precision": "auto" if values["bf16"] else "fp32"}

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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistributedRecipe:
    """What the processes of a launch share, beside gradients: see recipes/README.md, Several devices."""

    fsdp: bool = False  #: FSDP2: each device keeps a part of weights, gradients and optimizer
    context_parallel: Count = 1  #: devices that share each sequence by ring attention; needs fsdp
    sequence_parallel: Count = 1  #: devices that share each sequence by DeepSpeed's Ulysses

    @property
    def shared_by(self) -> int:
        """Devices that have a part of the same sequence each."""
        return self.context_parallel * self.sequence_parallel

    def __post_init__(self) -> None:
        if self.context_parallel > 1 and self.sequence_parallel > 1:
            raise ValueError("takes either context_parallel or sequence_parallel; found both")
        if self.context_parallel > 1 and not self.fsdp:
            raise ValueError(
                "context_parallel needs fsdp: true, which shards over the same devices"
            )
        if self.sequence_parallel > 1 and self.fsdp:
            raise ValueError(
                "sequence_parallel runs on DeepSpeed, which has no fsdp; leave one out"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluationRecipe:
    """What is measured once the model is trained: it, its base, and its base with the patch alone."""

    #: text that was not trained on; by default what data.held_out keeps, or stdlib's held-out split
    source: str | None = None
    #: tokens; by default 1, 2, 4, … times the trained length up to the patched one
    lengths: Annotated[list[Count], Field(min_length=1)] | None = None
    windows: Count = 50  #: of held-out text, each read at every length
    prompts: Whole = 64  #: retrieval prompts per length; none if the tokenizer reserves no tokens
    #: the trained model is measured with these factors too: train at ×4, evaluate at ×8
    factors: list[Annotated[float, Field(ge=1)]] = dataclasses.field(default_factory=list)
