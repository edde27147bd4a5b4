"""Plans of heads that `gaguide heads profile` chose, as experiments of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaguide.config.yaml_tree import read_yaml
from gaguide.errors import Fault, UserError
from gaguide.heads.rules import PROFILED
from gaguide.model.content import other_files
from gaguide.study.content import ContentHashes


@dataclass(frozen=True)
class Chosen:
    """The plans of one file that the study's `chosen` names."""

    plans: Mapping[str, Mapping[str, Any]]
    """Experiment → `guidance` section."""
    profiled: Mapping[str, Any] | None = None
    """Content of the model that the heads were chosen in, and of the text; None of plans written by hand."""

    def other_model(self, model: Mapping[str, str], hashes: ContentHashes) -> str | None:
        """Says where heads were chosen in a model whose weights differ from those that training starts from.

        A folder is compared by its content, a hub id by its name. model: a run's `model` section.
        """
        if self.profiled is None:
            return None
        name, folder = str(self.profiled.get("model")), Path(model["name"]).expanduser()
        if model["init"] == "scratch":
            other = "random weights"
        elif not folder.is_dir():
            other = f"{model['name']}, which cannot be compared with it" if model["name"] != name else ""
        else:
            files = other_files(self.profiled, folder, hashes.record(folder))
            other = f"{model['name']} (other {', '.join(files)})" if files else ""
        chosen = f"its heads were chosen by a profile of {name}, and training starts from"
        return f"{chosen} {other}" if other else None

    def is_of_text(self, data: list[str]) -> bool:
        """Whether heads were chosen on the text of these shards, by their fingerprints."""
        return self.profiled is not None and self.profiled.get("text") in data


def read_chosen(path: str | None) -> Chosen:
    """The plans in a file; none without one. Raises `UserError` with every fault."""
    if path is None:
        return Chosen({})
    tree = read_yaml(Path(path).expanduser(), "chosen")
    remedy = "give the plan.yaml of gaguide heads profile"
    faults = [Fault(f"chosen: {name}", "must be a guidance section", remedy, entry)
              for name, entry in tree.items() if not isinstance(entry, dict)]  # fmt: skip
    if faults:
        raise UserError(faults)
    plans = {str(name): entry for name, entry in tree.items()}
    return Chosen(plans, plans.pop(PROFILED, None))
