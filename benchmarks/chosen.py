"""Does the choice of heads decide whether a guided head is used? From the models of the study `used`.

    gaguide study run used --jobs 2
    python benchmarks/chosen.py runs/used runs/chosen

For every seed: `gaguide heads profile` of its base model; a run for each rule of the profile and each loss,
from that base and with the settings of the study's own run; `gaguide ablate` of it, compared with the seed's
`finetuned`, of the heads that the rule chose, and of the study's own run (`head-0`). What exists in
the second folder is not made again. Printed: means over seeds with Student's 95% interval; p values are
Holm-corrected over the rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from gaguide.ablate.records import Effect, read_ablation
from gaguide.stats.paired import holm, over_seeds

RULES = ("head-0", "chosen-most-used", "chosen-least-used", "chosen-random")
LOSSES = {"squared-30": {"weight": 30}, "log-mass": {"loss": "log-mass", "weight": 0.01}}
"""The study's experiments whose settings, but for the heads, the runs have."""
_TEXT = ["--text", "embedded", "--blocks", "64", "--block-length", "128"]


def main(study: Path, folder: Path) -> None:
    """Make what is missing, and print the tables."""
    seeds = sorted({path.name.split("-s")[1][0] for path in study.glob("cells/nano-base-s*")})
    for seed in seeds:
        _make(study, folder, seed)
    rows = {
        (loss, rule): [_numbers(study, folder, seed, loss, rule) for seed in seeds]
        for loss in LOSSES
        for rule in RULES
    }
    corrected = holm([over_seeds([one["more"] for one in found]).p for found in rows.values()])
    print("| guidance | heads | chosen, by seed | attention | loss without them, `finetuned` | guided | "
          "difference | corrected p | cost in loss |\n|" + "---|" * 9)  # fmt: skip
    for ((loss, rule), found), p in zip(rows.items(), corrected, strict=True):
        cells = [
            loss, rule, "; ".join(one["heads"] for one in found),
            f"{fmean(one['before'] for one in found):.3f} → {fmean(one['after'] for one in found):.3f}",
            *(_interval([one[name] for one in found]) for name in ("twin", "guided", "more")),
            "–" if p is None else f"{p:.3f}",
            _interval([one["cost"] for one in found]),
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")


def _make(study: Path, folder: Path, seed: str) -> None:
    """The profile, runs and ablations of one seed."""
    base, twin = _cell(study, "base", seed) / "model", _cell(study, "finetuned", seed) / "model"
    profile = folder / f"profile-s{seed}"
    if not (profile / "profile.json").is_file():
        words = ["--model", str(base), "--lexicon", "contrast", "--mode", "pieces", *_TEXT, "--choose", "2"]
        _run("heads", "profile", *words, "--seed", seed, "--output", str(profile))
    plans = yaml.safe_load((profile / "plan.yaml").read_text("utf-8"))
    for loss, settings in LOSSES.items():
        own = _cell(study, loss, seed)
        for rule in RULES:
            run = own if rule == "head-0" else folder / f"{loss}-{rule}-s{seed}"
            plan = own / "run.yaml" if rule == "head-0" else run / "run.yaml"
            if rule != "head-0" and not (run / "summary.json").is_file():
                config = yaml.safe_load((own / "run.yaml").read_text("utf-8"))
                config |= {"name": f"{loss} {rule} seed {seed}", "output": str(run.resolve())}
                config["guidance"] = plans[rule] | settings
                config["model"]["name"] = str(base.resolve())
                run.mkdir(parents=True, exist_ok=True)
                plan.write_text(yaml.safe_dump(config), "utf-8")
                _run("train", "--deepspeed", "zero0", "--config", str(plan))
            output = _ablation(folder, loss, rule, seed)
            if not (output / "ablation.json").is_file():
                words = ["--model", str(twin), str(run / "model"), "--plan", str(plan), *_TEXT]
                words += ["--methods", "mean", "--controls", "2", "--output", str(output)]
                _run("ablate", *words)


def _numbers(study: Path, folder: Path, seed: str, loss: str, rule: str) -> dict[str, Any]:
    """One seed's numbers; those of the heads are of both at once, attention is their mean."""
    twin, guided = read_ablation(_ablation(folder, loss, rule, seed)).models
    heads = guided.with_role("guided")
    both = [model.together["mean"] for model in (twin, guided)]
    run = _cell(study, loss, seed) if rule == "head-0" else folder / f"{loss}-{rule}-s{seed}"
    return {
        "heads": ", ".join(f"{one.layer}.{one.head}" for one in heads),
        "before": fmean(one.attention_before or 0.0 for one in heads),
        "after": fmean(one.attention or 0.0 for one in heads),
        "twin": _known(both[0].loss),
        "guided": _known(both[1].loss),
        "more": _known(both[1].over_first),
        "cost": _held_out(run) - _held_out(_cell(study, "finetuned", seed)),
    }


def _known(effect: Effect | None) -> float:
    assert effect is not None and effect.difference is not None
    return effect.difference


def _held_out(run: Path) -> float:
    return float(json.loads((run / "summary.json").read_text("utf-8"))["validation"]["after"]["lm_loss"])


def _interval(values: list[float]) -> str:
    found = over_seeds(values)
    return f"{found.difference:+.4f} [{found.low or 0:+.4f}, {found.high or 0:+.4f}]"


def _ablation(folder: Path, loss: str, rule: str, seed: str) -> Path:
    return folder / f"ablation-{loss}-{rule}-s{seed}"


def _cell(study: Path, experiment: str, seed: str) -> Path:
    (found,) = study.glob(f"cells/nano-{experiment}-s{seed}-*")
    return found


def _run(*words: str) -> None:
    """A command of gaguide, by this interpreter."""
    program = "from gaguide.cli import main; main()"
    subprocess.run([sys.executable, "-c", program, *words], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("study", type=Path, help="output folder of the study")
    parser.add_argument("output", type=Path, help="folder for profiles, runs and ablations")
    arguments = parser.parse_args()
    main(arguments.study, arguments.output)
