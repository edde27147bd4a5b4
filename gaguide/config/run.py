"""`RunConfig`: every setting of a training run, with one sentence for each.

ZeRO, precision and offload belong to the DeepSpeed JSON.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from gaguide.config.data import DataSection
from gaguide.config.fields import (
    Fraction,
    Layers,
    NonNegative,
    NonNegativeInt,
    OnOverflow,
    PathText,
    Positive,
    PositiveFraction,
    PositiveInt,
    Section,
    indices,
    words,
    words_at_home,
)
from gaguide.numbers import whole_number


class ModelSection(Section):
    name: PathText
    """Hub id or local folder of a pretrained model; with `init: scratch` a size: pico … gpt2-xl."""
    init: Literal["pretrained", "scratch"] = "pretrained"
    """Start from the named model's weights, or from random ones."""
    revision: str | None = None
    """Commit or tag of a hub model; null is its newest."""
    dropout: Fraction | None = None
    """Dropout everywhere in the model; null leaves the model's own."""
    attention: Literal["sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """Attention implementation outside guidance, by transformers' name."""
    resize_embeddings: bool = False
    """Add a row, the mean of all others, for each token that the data's tokenizer has and the model lacks."""
    trust_remote_code: bool = False
    """Run the Python files that come with the named model: they can do anything that you can."""


class AssignmentSection(Section):
    pattern: str
    """A lexicon, first-token, previous-token, self, offset-N, end-of-text, spans:MARK, PATTERN@MARK, or an
    entry point's name."""
    heads: Annotated[tuple[NonNegativeInt, ...], BeforeValidator(indices), Field(min_length=1)]
    """Heads counted from 0."""
    layers: Layers = "all"
    """Layers in which these heads are guided: all, last-half, or a list counted from 0."""
    weight: NonNegative = 1.0
    """Factor of these heads' loss, on top of guidance.weight."""


def default_weight(loss: str) -> float:
    """Factor of a guidance loss by default; docs/guidance.md reports the measurements behind it."""
    # The losses that are a logarithm have gradients two orders of magnitude larger.
    return {"squared": 3.0, "avoid": 0.03}.get(loss, 0.01)


class GuidanceSection(Section):
    experiment: str = "finetuned"
    """The study's experiment: finetuned (no guidance), 1-negation, 3-negation or 4-transition."""
    plan: tuple[AssignmentSection, ...] = ()
    """Instead of an experiment: any patterns on any heads of any layers."""
    lexicons: PathText | None = None
    """YAML file of the user's own word sets, for `plan`."""
    mode: Literal["pieces", "words"] = "pieces"
    """pieces: vocabulary pieces as the study lists them; words: whole words and phrases."""
    layers: Layers = "all"
    """Layers in which heads are guided: all, last-half, or a list counted from 0."""
    weight: NonNegative = default_weight("squared")
    """Factor of the guidance loss; at 0 attention is only measured. Default: 3 for squared, 0.03 for
    avoid, 0.01 for the others (docs/guidance.md)."""
    schedule: Literal["constant", "linear"] = "constant"
    """Shape of the weight after its warmup: constant, or linear, which would be 0 one step after the last."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the weight rises linearly; the last of them has the whole weight."""
    reduction: Literal["mean", "frobenius"] = "mean"
    """mean: per visible query-key pair; frobenius: Eq. (2) as printed, summed over a sequence."""
    target: Literal["indicator", "normalized"] = "indicator"
    """indicator: Eq. (3) as printed; normalized: each row divided by its number of visible targets."""
    loss: Literal["squared", "log-mass", "kl", "hinge", "avoid"] = "squared"
    """squared: the study's Eq. (2); the other losses have no reduction and no target."""
    threshold: PositiveFraction | None = None
    """Attention mass on the targets at which the loss hinge becomes zero; null: 0.5."""
    method: Literal["auto", "joint", "tap"] = "auto"
    """joint: a guided head's output and loss from one softmax; tap: the loss in addition to the model's own
    attention of all heads; auto: joint on a CPU, tap on a GPU. Losses are the same within rounding."""

    @model_validator(mode="before")
    @classmethod
    def _weight_of_the_loss(cls, given: Any) -> Any:
        if isinstance(given, dict) and (loss := given.get("loss", "squared")) != "squared":
            return {"weight": default_weight(str(loss)), **given}
        return given

    @model_validator(mode="after")
    def _one_plan(self) -> GuidanceSection:
        if self.plan and self.experiment != "finetuned":
            raise ValueError("must have an experiment or a plan, not both")
        if self.plan and self.layers != "all":
            raise ValueError("layers must be given in each entry of the plan")
        if self.lexicons is not None and not self.plan:
            raise ValueError("lexicons apply to a plan only: an experiment uses the study's own")
        if not self.plan and self.experiment == "finetuned" and self.layers != "all":
            raise ValueError("layers apply only if heads are guided: give an experiment or a plan")
        if self.loss != "squared" and (self.reduction, self.target) != ("mean", "indicator"):
            raise ValueError("reduction and target apply to the loss squared only: leave them out")
        if self.loss != "hinge" and self.threshold is not None:
            raise ValueError("threshold applies to the loss hinge only: leave it out")
        return self


class LoraSection(Section):
    rank: PositiveInt = 8
    """Rank of each adapter: the width between its two matrices."""
    alpha: Positive = 16.0
    """An adapter's contribution is scaled by alpha / rank."""
    targets: Annotated[tuple[str, ...], BeforeValidator(words), Field(min_length=1)] = ("all-linear",)
    """Linear layers with an adapter: all-linear, or ends of names such as q_proj or layers.3.mlp.up_proj."""
    dropout: Fraction = 0.0
    """Dropout of an adapter's input, in training."""
    quantize: Literal["nf4"] | None = None
    """nf4: keep the frozen model in 4 bits (QLoRA, by bitsandbytes); null keeps its precision."""


class TrainSection(Section):
    global_batch: PositiveInt
    """Sequences in one optimizer step, over all ranks and accumulation steps."""
    micro_batch: PositiveInt | Literal["auto"] | None = None
    """Sequences per rank in one forward pass; null: global_batch / ranks; auto: as fits memory."""
    epochs: Positive | None = None
    """Passes over the training blocks; give this or `steps`."""
    steps: PositiveInt | None = None
    """Optimizer steps; give this or `epochs`."""
    learning_rate: Positive = 5e-5
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    """Shape of the learning rate after warmup; cosine and linear would be 0 one step after the last."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises linearly; the last of them is at the peak."""
    weight_decay: NonNegative = 0.01
    """AdamW's decoupled weight decay, on matrices and embeddings only."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    epsilon: Positive = 1e-8
    """AdamW's epsilon."""
    gradient_clipping: NonNegative = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    gradient_checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third more compute."""
    compile: bool | Literal["max-autotune"] = False
    """Compile the model with torch.compile, at ZeRO stages 0 to 2; max-autotune tries more kernels first."""
    freeze: Annotated[tuple[str, ...], BeforeValidator(words)] = ()
    """Parameters that are frozen: embeddings, `layers 0-3`, or regular expressions on their names."""
    trainable: Annotated[tuple[str, ...], BeforeValidator(words)] = ()
    """Instead of `freeze`, by the same names: parameters that are trained, while all others are frozen."""
    lora: LoraSection | None = None
    """Train low-rank adapters (LoRA) and nothing else; null trains the model's own weights."""
    peak_tflops: Positive | None = None
    """Peak of one device in Tflop/s, for utilization (MFU); null looks up common GPUs."""
    log_every: PositiveInt = 10
    """Steps between two records in metrics.jsonl."""
    max_skipped_steps: PositiveInt = 20
    """Steps in a row with a gradient that is not finite, each dropped, after which the run ends."""
    hang_timeout: NonNegative = 900.0
    """Seconds without progress after which the ranks end and report which of them hangs; 0 disables it."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainSection:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("must have exactly one of epochs and steps")
        if self.freeze and self.trainable:
            raise ValueError("must have only one of freeze and trainable")
        if self.lora is not None and (self.freeze or self.trainable):
            raise ValueError(
                "must have only one of lora and freeze or trainable: with adapters the whole model is frozen"
            )
        if self.lora is not None and self.lora.quantize and self.compile:
            raise ValueError("must have only one of compile and lora.quantize")
        return self


class ValidationSection(Section):
    every: NonNegativeInt = 0
    """Steps between two validations; 0 validates before the first step and after the last only."""
    blocks: PositiveInt = 256
    """Held-out blocks measured each time, at most."""
    near_cue: str | None = None
    """Lexicon: the held-out loss is also split by distance after its words (docs/training.md)."""
    lexicons: PathText | None = None
    """YAML file of the user's own word sets, for `near_cue`."""
    cue_mode: Literal["pieces", "words"] = "words"
    """words: whole words and phrases of `near_cue`; pieces: its vocabulary pieces."""

    @model_validator(mode="after")
    def _cues(self) -> ValidationSection:
        if self.lexicons is not None and self.near_cue is None:
            raise ValueError("lexicons apply to near_cue only: name one of their word sets there")
        return self


class CheckpointSection(Section):
    every: NonNegativeInt = 0
    """Steps between two checkpoints; 0 saves after the last step only."""
    keep: PositiveInt = 2
    """Newest checkpoints kept."""
    keep_best: NonNegativeInt = 0
    """Checkpoints kept in addition, with the lowest held-out loss; `best` points to the first of them."""


class EvaluateSection(Section):
    every: NonNegativeInt = 0
    """Steps between evaluations, in addition to one before the first step and one after the last; 0: none."""
    tasks: Annotated[tuple[str, ...], BeforeValidator(words_at_home)] = ()
    """Tasks, as for `--tasks` of `gaguide evaluate`."""
    data: PathText | None = None
    """Folder with the data files of named tasks."""
    limit: PositiveInt | None = None
    """Only the first examples of each task."""
    shots: NonNegativeInt | None = None
    """Demonstrations before every prompt; null uses the tasks' own number."""
    on_overflow: OnOverflow = "cut"
    """Examples longer than the model: cut on the left, leave out whole demonstrations, or fail."""
    batch_tokens: PositiveInt | None = None
    """Padded tokens of a batch; null uses 16,384 on a GPU, 512 on a CPU (see docs/evaluation.md)."""

    @model_validator(mode="after")
    def _tasks_and_steps(self) -> EvaluateSection:
        if bool(self.tasks) != bool(self.every):
            raise ValueError("must have both every (in steps) and tasks, or neither")
        return self


class RunConfig(Section):
    """A training run."""

    name: str = "run"
    """Name in reports."""
    output: Annotated[PathText, Field(min_length=1)]
    """Folder of everything the run writes."""
    resume_from: PathText | None = None
    """Resume here with settings that may differ from the next step on: latest, a STEP, or RUN or RUN:STEP."""
    init_from: PathText | None = None
    """Start a new run from the weights of a checkpoint: RUN or RUN:STEP."""
    init_optimizer: bool = False
    """Take the optimizer's moments from `init_from` as well."""
    seed: Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(whole_number)] = 0
    """Seed of weights, data order and dropout."""
    model: ModelSection
    """The model to start from: give at least `name`."""
    data: DataSection
    """Text to train on: give `shards`, `mixture` or `source`."""
    guidance: GuidanceSection = GuidanceSection()
    """Which heads are guided to what, and how strongly."""
    train: TrainSection
    """How to train: give at least `global_batch`, and `steps` or `epochs`."""
    validation: ValidationSection = ValidationSection()
    """Measurement of the held-out loss."""
    evaluate: EvaluateSection = EvaluateSection()
    """Evaluation on tasks during training."""
    checkpoint: CheckpointSection = CheckpointSection()
    """When checkpoints are saved, and which are kept."""

    @model_validator(mode="after")
    def _one_start(self) -> RunConfig:
        if self.resume_from is not None and self.init_from is not None:
            raise ValueError("must have only one of resume_from and init_from")
        if self.init_optimizer and self.init_from is None:
            raise ValueError("init_optimizer needs init_from")
        return self

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> RunConfig:
        if self.train.lora is None:
            return self
        problems = []
        if self.model.init == "scratch":
            problems.append("train.lora adapts a pretrained model: model.init must be pretrained")
        if self.model.resize_embeddings:
            problems.append(
                "train.lora trains no embeddings: model.resize_embeddings would leave new rows untrained; "
                "resize and save the model first, and give its folder"
            )
        if self.init_from is not None:
            problems.append(
                "train.lora needs its base in a folder: export the checkpoint that init_from names "
                "(gaguide checkpoint export) and give that folder as model.name"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self
