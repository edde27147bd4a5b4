"""Upload of an exported model to a hub, by huggingface_hub."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.log import run_files
from gaguide.model.content import ADAPTER_CONFIG, ADAPTER_FOLDER
from gaguide.publish.base import is_hub_id

_HIDDEN = [".*", "**/.*"]
"""Left out: nothing but the export's own files is uploaded."""

_TRANSPORTS = {"httpx", "httpx2"}
"""HTTP libraries of huggingface_hub 1 and 2; their errors have no common base."""


def check_push(run: Path, repo: str, adapter: bool = False, dry_run: bool = False) -> Path:
    """The folder of a finished run's model, or of its adapters alone. A dry run needs no token.

    Raises one `UserError` with every reason not to upload it.
    """
    model, summary = run / "model", run / run_files.SUMMARY
    with FaultCollector() as faults:
        try:
            validate_repo_id(repo)
            if "/" not in repo:
                raise HFValidationError("has no user or organisation")
        except HFValidationError as error:
            faults.add(
                Fault(
                    "--repo",
                    f"is not a repository name: {error}",
                    "give USER/NAME or ORGANISATION/NAME",
                    repo,
                )
            )
        if not summary.is_file() or not (model / "config.json").is_file():
            problem = "is not a finished run with an exported model"
            faults.add(Fault("RUN", problem, "give the output folder of a finished training", str(run)))
        elif diverged := json.loads(summary.read_text("utf-8")).get("diverged"):
            faults.add(Fault("RUN", f"has diverged ({diverged})", "push another run", str(run)))
        if adapter:
            faults.attempt(_check_adapter, run)
        if not dry_run and get_token() is None:
            faults.add(
                Fault("token", "no token of the hub was found", "run `hf auth login`, or set HF_TOKEN")
            )
    return run / ADAPTER_FOLDER if adapter else model


def _check_adapter(run: Path) -> None:
    path = run / ADAPTER_FOLDER / ADAPTER_CONFIG
    if not path.is_file():
        problem = "has no adapters: it trained the model's own weights"
        raise UserError.of("--adapter", problem, "leave it out", str(run))
    base = str(json.loads(path.read_text("utf-8"))["base_model_name_or_path"])
    if not is_hub_id(base):
        problem = f"their base is a folder of this machine ({base}), which others cannot load"
        remedy = "leave --adapter out, which uploads the merged model; or train on a model of the hub"
        raise UserError.of("--adapter", problem, remedy, str(run))


def push_model(model: Path, repo: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload the files of `model` to `repo`, made if it does not exist; returns the commit's address.

    Interrupted and started again, it sends only what the hub does not have. An existing repository keeps its
    visibility and its other files. Raises `UserError` where the hub refuses or cannot be reached.
    """
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=model,
            revision=revision,
            ignore_patterns=_HIDDEN,
            commit_message=f"Upload {model.resolve().parent.name} with gaguide",
        )
    except HfHubHTTPError as error:
        reason = error.server_message or str(error).splitlines()[0]
        status: int = getattr(error.response, "status_code", 0)
        remedy = {
            401: "log in again: hf auth login",
            403: "use a token with write access to that user or organisation",
        }.get(status, "start the same command again; uploaded files are not sent twice")
        raise UserError.of("--repo", f"the hub refused: {reason}", remedy, repo) from None
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _TRANSPORTS:
            raise
        problem = f"the hub cannot be reached ({error or type(error).__name__})"
        remedy = (
            "start the same command again where the hub can be reached; uploaded files are not sent twice"
        )
        raise UserError.of("--repo", problem, remedy, repo) from None
    return str(done.commit_url)
