"""The tables of docs/laptop-study.md, from the records of a study with the paper's experiments.

    gaguide study run laptop --tasks demo,memo-trap --task_data FOLDER --jobs 2
    python benchmarks/laptop.py runs/laptop

Every number is read from the files of `gaguide study collect`; a table's title names what means are over.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from gaguide.study.record_files import read_study
from gaguide.study.records import HELD_OUT
from gaguide.study.study_records import StudyRecords


def frame(rows: tuple[object, ...]) -> pd.DataFrame:
    return pd.DataFrame([asdict(row) for row in rows])  # type: ignore[call-overload]


def show(title: str, table: pd.DataFrame) -> None:
    """Print a table as Markdown; missing values are dashes."""
    whole = table.reset_index().astype(object)
    whole = whole.where(whole.notna(), "–")
    lines = [list(map(str, whole.columns)), ["---"] * len(whole.columns), *whole.astype(str).values.tolist()]
    print(f"\n**{title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))


def wide(rows: pd.DataFrame, down: list[str], across: str, text: str = "text") -> pd.DataFrame:
    """The texts of `rows` as a table of `down` × `across`, in the order of the records."""
    table = rows.set_index([*down, across])[text].unstack(across)
    return table.reindex(pd.Index(rows.set_index(down).index.unique()))[list(rows[across].unique())]


def half_width(rows: pd.DataFrame, value: str, number: str) -> pd.Series:
    """The number with half of its interval where it has one."""
    half = (rows["high"].astype(float) - rows[value]).map((" ± " + number.replace("+", "")).format)
    return rows[value].map(number.format) + half.where(rows["high"].notna(), "")


def costs(study: StudyRecords) -> None:
    cells = frame(study.cells)
    trained = cells[cells.role != "original"]
    mean = trained.groupby(["size", "parameters", "role"], sort=False).cpu_seconds.mean().round().astype(int)
    show("CPU seconds of a base and of a tuned cell: training, evaluation, starts", mean.unstack("role"))
    minutes = cells[["wall_seconds", "cpu_seconds"]].sum() / 60
    print(f"\n{(cells.state == 'done').sum()} of {len(cells)} cells; minutes, summed over cells:")
    print(minutes.round(1).to_dict())


def attention(study: StudyRecords) -> None:
    rows = frame(study.attention)
    cells = rows[rows.guided].groupby("cell")[["before", "after"]].mean()
    lowest = (cells.after / cells.before).min()
    print(f"\n{len(cells)} guided cells; their attention rises by a factor of {lowest:.1f} or more")

    def table(chosen: pd.DataFrame, down: list[str], across: str) -> pd.DataFrame:
        mean = chosen.groupby([*down, across], sort=False)[["before", "after"]].mean().reset_index()
        mean["text"] = mean.before.map("{:.3f}".format) + " → " + mean.after.map("{:.3f}".format)
        return wide(mean, down, across)

    show(
        "Attention, mean over layers, heads and seeds",
        table(rows, ["experiment", "pattern"], "size")[list(study.index.sizes)],
    )
    layers = table(rows[rows.experiment == "1-negation"], ["size"], "layer")
    show("1-negation, head 0, by layer, mean over seeds", layers.sort_index(axis=1))


def losses(study: StudyRecords) -> None:
    means = frame(study.means)
    means = means[(means.task == HELD_OUT) & (means.metric == "lm_loss")]
    means["text"] = means.value.map("{:.3f}".format)
    show("Held-out loss, mean over seeds", wide(means, ["size"], "experiment"))
    rows = frame(study.losses)
    rows = rows[rows.baseline == "finetuned"]
    rows["text"] = half_width(rows, "difference", "{:+.4f}") + rows.relative.map(" ({:+.2%})".format)
    show("Held-out loss against finetuned, paired by seed", wide(rows, ["size"], "experiment"))
    print(f"\n{((rows.low > 0) | (rows.high < 0)).sum()} of {len(rows)} intervals exclude 0")


def moved(study: StudyRecords) -> None:
    main, rows = study.index.main_metrics, frame(study.comparisons)
    rows = rows[rows.metric == rows.task.map(main)]
    kind = rows.metric.isin(["acc", "acc_norm"]).map({True: "accuracies", False: "losses and log-odds"})
    rows["across"] = kind + rows.level.map({"seed": " by seed", "seeds": " over seeds"})
    rows["raw"], rows["corrected"], rows["rises"] = rows.p < 0.05, rows.p_holm < 0.05, rows.difference > 0
    keys = ["experiment", "baseline", "across"]
    counts = rows.groupby(keys, sort=False).agg(
        holm=("corrected", "sum"), raw=("raw", "sum"), n=("raw", "size")
    )
    counts["text"] = [f"{holm} ({raw}) of {n}" for holm, raw, n in counts.values]
    show(
        "Main metrics with p < 0.05 after Holm's correction (before it)",
        wide(counts.reset_index(), keys[:2], "across"),
    )
    kept = rows[rows.corrected].set_index("size")
    columns = ["experiment", "baseline", "seed", "task", "metric", "difference", "low", "high", "p_holm"]
    show("After correction, over seeds", kept[kept.level == "seeds"][columns].round(3))
    show("After correction, accuracies by seed",
         kept[(kept.level == "seed") & (kept.metric == "acc")][columns].round(3))  # fmt: skip
    by_seed = rows[(rows.level == "seed") & (rows.baseline == "finetuned")]
    tasks = by_seed.groupby("task", sort=False)
    per_task = tasks.agg(comparisons=("p", "size"), corrected=("corrected", "sum"), rising=("rises", "sum"))
    show("Against finetuned, by seed: how many after correction, and how many rise", per_task)


def scores(study: StudyRecords) -> None:
    rows, main = frame(study.means), study.index.main_metrics
    rows = rows[rows.metric == rows.task.map(main)]
    rows["text"] = half_width(rows, "value", "{:.3f}")
    table = wide(rows, ["task", "metric", "size"], "experiment")
    order = [(task, metric, size) for task, metric in main.items() for size in study.index.sizes]
    show("Means over seeds", table.loc[[key for key in order if key in table.index]])


def verdicts(study: StudyRecords) -> None:
    rows = frame(study.verdicts)
    show(
        "Verdicts on size", wide(rows[rows.metric != "acc_norm"], ["task", "metric"], "experiment", "verdict")
    )


def analysis(study: StudyRecords) -> None:
    shares = frame(study.shares)
    texts = shares.assign(text=shares.share.map("{:.0%}".format))
    both = texts.groupby(["task", "examples", "lexicon"], sort=False).text.agg(" / ".join).reset_index()
    show("Prompts with a lexicon's pieces / words", wide(both, ["task", "examples"], "lexicon"))

    gains, main = frame(study.gains), study.index.main_metrics
    gains = gains[(gains.baseline == "finetuned") & (gains.metric == gains.task.map(main))]
    keys = ["task", "metric", "words", "experiment"]
    mean = gains.groupby(keys, sort=False).agg(gain=("gain", "mean"), examples=("examples", "first"))
    mean["text"] = mean.gain.map("{:+.3f}".format) + mean.examples.map(" ({})".format)
    mean.loc[mean.examples == 0, "text"] = "–"
    show(
        "Change against finetuned, mean over sizes and seeds",
        wide(mean.reset_index(), keys[:3], "experiment"),
    )

    rows = frame(study.changes)
    rows = rows[(rows.baseline == "finetuned") & rows.correct.notna()]
    moved = rows.assign(more=rows.correct > rows.baseline_correct, fewer=rows.correct < rows.baseline_correct)
    counts = moved.groupby(["task", "experiment"], sort=False).agg(
        more=("more", "sum"), fewer=("fewer", "sum"), n=("more", "size")
    )
    counts["text"] = [f"{more} / {fewer} of {n}" for more, fewer, n in counts.values]
    show(
        "Right in more seeds / in fewer, of examples × sizes",
        wide(counts.reset_index(), ["task"], "experiment"),
    )


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("study", type=Path, help="output folder of the study")
    found = read_study(parser.parse_args().study)
    for part in (costs, attention, losses, moved, scores, verdicts, analysis):
        part(found)
