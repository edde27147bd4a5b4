"""Guidance inside transformers' own Trainer: gradients of a loop by hand, the trainer's own evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from gaguide.errors import UserError
from gaguide.guidance import Assignment, GuidancePlan, TokenSet, guide
from gaguide.integrations.transformers import guided
from tests.support.models import random_ids, tiny_model

PLAN = GuidancePlan((Assignment(TokenSet("words", frozenset(range(2, 30))), (0, 3)),), weight=3.0)


class Rows(Dataset):
    """Rows of ids of which the first `masked` labels do not count."""

    def __init__(self, ids_NT: torch.Tensor, masked: bool) -> None:
        self.ids_NT, self.masked = ids_NT, masked

    def __len__(self) -> int:
        return len(self.ids_NT)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        labels = self.ids_NT[row].clone()
        if self.masked:
            labels[: row % 7] = -100
        return {"input_ids": self.ids_NT[row], "labels": labels}


class _PlainOrder(Trainer):
    def _get_train_sampler(self, *_: Any) -> None:
        return None


def arguments(output: Path, **more: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 2, "max_steps": 3, "learning_rate": 0.1, "optim": "sgd",
        "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "logging_steps": 1, "report_to": "none",
        "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return TrainingArguments(str(output), **(defaults | more))


def by_hand(
    ids_NT: torch.Tensor, accumulate: int, masked: bool, schedule: bool = False, bf16: bool = False
) -> list[torch.Tensor]:
    """Weights after three steps of SGD: mean over a global batch's labels, plus the mean guidance loss."""
    model, rows = tiny_model("gpt2").train(), Rows(ids_NT, masked)
    for step in range(3):
        micro_batches = []
        for part in range(accumulate):
            first = (step * accumulate + part) * 2
            pair = [rows[(first + i) % len(rows)] for i in range(2)]
            micro_batches.append({name: torch.stack([row[name] for row in pair]) for name in pair[0]})
        items = sum(int((batch["labels"] != -100).sum()) for batch in micro_batches)  # as the Trainer counts
        with guide(model, PLAN) as guidance:
            if schedule:
                guidance.weight *= 1 - step / 3
            for batch in micro_batches:
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    out = model(**batch, num_items_in_batch=items, use_cache=False)
                (out.loss + guidance.loss() / accumulate).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
        model.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_weights_equal_a_loop_by_hand(tmp_path: Path, accumulate: int, masked: bool) -> None:
    ids_NT, model = random_ids(18, 21), tiny_model("gpt2")
    trainer = guided(_PlainOrder)(
        model=model,
        args=arguments(tmp_path, gradient_accumulation_steps=accumulate),
        train_dataset=Rows(ids_NT, masked),
        guidance=PLAN,
    )
    trainer.train()
    for got, want in zip(model.parameters(), by_hand(ids_NT, accumulate, masked), strict=True):
        torch.testing.assert_close(got.detach(), want, rtol=1e-5, atol=1e-6)
    for log in trainer.state.log_history[:3]:
        assert log["loss"] == pytest.approx(log["lm_loss"] + log["guidance_loss"])
        assert log["guidance_loss"] > 0 and 0 < log["guided_attention"] < 1


def test_the_weight_follows_the_schedule(tmp_path: Path) -> None:
    ids_NT, model = random_ids(6, 21), tiny_model("gpt2")
    trainer = guided(_PlainOrder)(
        model=model,
        args=arguments(tmp_path),
        train_dataset=Rows(ids_NT, False),
        guidance=PLAN,
        guidance_schedule="linear",
    )
    trainer.train()
    for got, want in zip(model.parameters(), by_hand(ids_NT, 1, False, schedule=True), strict=True):
        torch.testing.assert_close(got.detach(), want, rtol=1e-5, atol=1e-6)


def test_mixed_precision_is_the_trainers(tmp_path: Path) -> None:
    ids_NT, model = random_ids(18, 21), tiny_model("gpt2")
    trainer = guided(_PlainOrder)(
        model=model,
        args=arguments(tmp_path, gradient_accumulation_steps=3, bf16=True),
        train_dataset=Rows(ids_NT, True),
        guidance=PLAN,
    )
    trainer.train()
    for got, want in zip(model.parameters(), by_hand(ids_NT, 3, True, bf16=True), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.detach(), want, rtol=1e-5, atol=1e-6)
    exact = by_hand(ids_NT, 3, True)
    assert any(not torch.equal(got, want) for got, want in zip(model.parameters(), exact, strict=True))


def test_a_last_step_of_fewer_micro_batches_counts_as_a_step(tmp_path: Path) -> None:
    """Five micro batches by three: the second step has two."""
    trainer = guided(_PlainOrder)(
        model=tiny_model("gpt2"),
        args=arguments(
            tmp_path, gradient_accumulation_steps=3, max_steps=2, logging_steps=2, learning_rate=0.0
        ),
        train_dataset=Rows(random_ids(10, 21), False),
        guidance=PLAN,
    )
    trainer.train()
    plain = _PlainOrder(
        model=tiny_model("gpt2"),
        args=arguments(
            tmp_path, gradient_accumulation_steps=3, max_steps=2, logging_steps=2, learning_rate=0.0
        ),
        train_dataset=Rows(random_ids(10, 21), False),
    )
    plain.train()
    guided_log, plain_log = trainer.state.log_history[0], plain.state.log_history[0]
    assert guided_log["lm_loss"] == pytest.approx(plain_log["loss"], rel=1e-5)


def test_evaluation_is_the_trainers_own_and_measured(tmp_path: Path) -> None:
    rows = Rows(random_ids(6, 21), True)
    plain = Trainer(model=tiny_model("gpt2"), args=arguments(tmp_path), eval_dataset=rows)
    trainer = guided(Trainer)(
        model=tiny_model("gpt2"),
        args=arguments(tmp_path, eval_strategy="steps", eval_steps=2),
        train_dataset=rows,
        eval_dataset=rows,
        guidance=PLAN,
    )
    before = trainer.evaluate()
    assert before["eval_loss"] == plain.evaluate()["eval_loss"]
    assert 0 < before["eval_guided_attention"] < 1
    tested = trainer.predict(rows, metric_key_prefix="test")
    assert tested.metrics["test_guided_attention"] == pytest.approx(before["eval_guided_attention"])
    trainer.train()
    logged = [log for log in trainer.state.log_history if "eval_guided_attention" in log]
    assert [log["step"] for log in logged] == [2, 3]
    assert trainer.evaluate()["eval_guided_attention"] > before["eval_guided_attention"]
    with guide(trainer.model, PLAN):  # nothing is left attached
        pass


def test_a_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    ids_NT = random_ids(8, 21)

    def run(steps: int, resume: bool = False) -> list[torch.Tensor]:
        model = tiny_model("gpt2")
        args = arguments(tmp_path, max_steps=steps, save_strategy="steps", save_steps=2, optim="adamw_torch")
        trainer = guided(Trainer)(model=model, args=args, train_dataset=Rows(ids_NT, False), guidance=PLAN)
        trainer.train(resume_from_checkpoint=resume)
        return [parameter.detach().clone() for parameter in model.parameters()]

    want = run(4)
    run(2)
    for got, whole in zip(run(4, resume=True), want, strict=True):
        assert torch.equal(got, whole)


def test_a_model_that_the_trainer_makes_itself_is_guided(tmp_path: Path) -> None:
    """`model_init`, as in a search of hyperparameters: `train` makes another model than the first."""
    logs = []
    for given in ({"model": tiny_model("gpt2")}, {"model_init": lambda: tiny_model("gpt2")}):
        rows = Rows(random_ids(6, 21), False)
        trainer = guided(_PlainOrder)(args=arguments(tmp_path), train_dataset=rows, guidance=PLAN, **given)
        trainer.train()
        logs.append([log.get("guidance_loss") for log in trainer.state.log_history])
    assert logs[0] == logs[1] and None not in logs[0][:3]


def test_an_error_in_training_leaves_the_model_unguided(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("stopped")

    model = tiny_model("gpt2")
    trainer = guided(Trainer)(
        model=model,
        args=arguments(tmp_path),
        train_dataset=Rows(random_ids(4, 21), False),
        guidance=PLAN,
        callbacks=[Stop()],
    )
    with pytest.raises(RuntimeError, match="stopped"):
        trainer.train()
    assert trainer._guidance is None
    with guide(model, PLAN):
        pass


def test_what_does_not_fit_is_told_before_training(tmp_path: Path) -> None:
    far = GuidancePlan((Assignment(TokenSet("words", frozenset({2})), (9,)),))
    with pytest.raises(UserError, match=r"guidance\.heads"):
        guided(Trainer)(model=tiny_model("gpt2"), args=arguments(tmp_path), guidance=far)
    with pytest.raises(UserError, match=r"guidance_schedule = 'cosine'(.|\n)*guidance_warmup_steps = -1"):
        guided(Trainer)(
            model=tiny_model("gpt2"), args=arguments(tmp_path), guidance=PLAN,
            guidance_schedule="cosine", guidance_warmup_steps=-1,
        )  # fmt: skip
    model = tiny_model("gpt2")
    args = arguments(
        tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True}
    )
    trainer = guided(Trainer)(
        model=model, args=args, train_dataset=Rows(random_ids(4, 21), False), guidance=PLAN
    )
    with pytest.raises(UserError, match="reentrant"):
        trainer.train()


def _summed(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    loss = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return loss * 0.7


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    "own",
    [{}, {"label_smoothing_factor": 0.1}, {"compute_loss_func": _summed}],
    ids=["plain", "smoothed", "function"],
)
def test_whatever_the_trainers_loss_the_mean_guidance_loss_is_added(
    tmp_path: Path, accumulate: int, own: dict[str, Any]
) -> None:
    """One step from the same weights: guided and plain differ by the gradient of guidance alone."""
    ids_NT = random_ids(2 * accumulate, 21)
    smoothing = {name: value for name, value in own.items() if name == "label_smoothing_factor"}
    function = {name: value for name, value in own.items() if name == "compute_loss_func"}
    given: dict[str, Any] = {"train_dataset": Rows(ids_NT, True), **function}

    def trained(kind: Any, **more: Any) -> list[torch.Tensor]:
        args = arguments(tmp_path, gradient_accumulation_steps=accumulate, max_steps=1, **smoothing)
        trainer = kind(model=tiny_model("gpt2"), args=args, **given, **more)
        trainer.train()
        return [parameter.detach() for parameter in trainer.model.parameters()]

    model = tiny_model("gpt2").train()
    with guide(model, PLAN) as guidance:
        for pair in ids_NT.split(2):
            model(input_ids=pair, use_cache=False)
            (guidance.loss() / accumulate).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    guided_weights, plain = trained(guided(_PlainOrder), guidance=PLAN), trained(_PlainOrder)
    for got, base, gradient in zip(guided_weights, plain, gradients, strict=True):
        want = base if gradient is None else base - 0.1 * gradient
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
