"""Tokenizers: loading, the ids around a document, and fingerprints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gaguide.errors import Fault, FaultCollector, UserError, first_line
from gaguide.files import hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EOS, NO_SEPARATOR = "eos", "none"
"""Values of `separator` other than the text of a token."""
_SMALLEST_VOCABULARY = 3
_HUB_SECONDS = 15


def load_tokenizer(name_or_folder: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or a hub model; code from a repository is never run.

    `UserError` if it is not found, the hub cannot be reached, or it has no end-of-text token.
    """
    from transformers import AutoTokenizer

    name = str(name_or_folder)
    name = str(Path(name).expanduser()) if name.startswith("~") else name
    cached_only = Path(name).is_dir() or not hub_has_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=cached_only)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise UserError(_not_loaded(name, error)) from None
    if len(tokenizer) < _SMALLEST_VOCABULARY:  # transformers' result for a folder that has only a config.json
        raise UserError(_not_loaded(name, ValueError("it has no vocabulary")))
    if tokenizer.eos_token_id is None:
        remedy = "choose one that has it: the token separates documents"
        raise UserError.of("tokenizer", "has no end-of-text (eos) token", remedy, name)
    return tokenizer


def hub_has_model(name: str) -> bool:
    """Whether the hub has this model, by one quick request: offline, its client would retry for a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except Exception:  # no such model, no connection, not a name: the cache may still have it
        return False
    return True


def _not_loaded(name: str, error: Exception) -> Fault:
    reason = first_line(error)
    if Path(name).is_dir():
        remedy = (
            "give a folder with tokenizer.json, or vocab.json and merges.txt, as save_pretrained writes it"
        )
        return Fault("tokenizer", f"contains no tokenizer that can be loaded ({reason})", remedy, name)
    remedy = (
        "give a local folder with a tokenizer, or the name of a model on the hub; without a connection to "
        "the hub, copy the model's folder to this machine"
    )
    return Fault(
        "tokenizer", f"is not a local folder, and cannot be loaded from the hub ({reason})", remedy, name
    )


@dataclass(frozen=True)
class DocumentIds:
    """The ids that begin and end every document."""

    eos: int
    """The tokenizer's end-of-text id, or `separator` where that is another one."""
    bos: int | None = None
    """Id before every document; None if there is none."""
    separator: int | None = None
    """Id after every document; None if there is none."""

    @property
    def before(self) -> np.ndarray:
        """The ids before a document [0 or 1] uint32."""
        return np.array([] if self.bos is None else [self.bos], np.uint32)

    @property
    def after(self) -> np.ndarray:
        """The ids after a document [0 or 1] uint32."""
        return np.array([] if self.separator is None else [self.separator], np.uint32)


def document_ids(tokenizer: PreTrainedTokenizerBase, bos: bool | None, separator: str) -> DocumentIds:
    """The ids that begin and end every document.

    `bos` None begins documents with the begin-of-text id if the tokenizer itself does so. `separator` is
    "eos", "none" or the text of a token. One `UserError` names all that the tokenizer does not have.
    """
    with FaultCollector() as faults:
        first = tokenizer.bos_token_id
        if bos and first is None:
            remedy = "omit --bos, or give a tokenizer that has one"
            faults.add(Fault("--bos", "the tokenizer has no begin-of-text (bos) token", remedy))
        ending: int | None = int(tokenizer.eos_token_id)
        if separator == NO_SEPARATOR:
            ending = None
        elif separator != EOS:
            ending = tokenizer.get_vocab().get(separator)
            if ending is None:
                known = ", ".join(tokenizer.all_special_tokens[:8])
                remedy = f"give {EOS!r}, {NO_SEPARATOR!r}, or one of its tokens: {known}"
                faults.add(Fault("--separator", "is not a token of the tokenizer", remedy, separator))
    begins = starts_with_bos(tokenizer) if bos is None else bos
    return DocumentIds(
        eos=int(tokenizer.eos_token_id) if ending is None else ending,
        bos=int(first) if begins and first is not None else None,
        separator=ending,
    )


def starts_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts its begin-of-text id before a text."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id, including added tokens."""
    return max(tokenizer.get_vocab().values()) + 1


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of everything that determines a document's ids, and of the end-of-text id; not of file layout.

    A document is encoded without the tokens that a tokenizer adds around a text.
    """
    identity: dict[str, Any] = {"vocabulary": tokenizer.get_vocab(), "eos": tokenizer.eos_token_id}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        identity["class"] = type(tokenizer).__name__
    else:
        parsed = json.loads(backend.to_str())
        identity["added"] = {token["content"]: token["id"] for token in parsed["added_tokens"]}
        model = {key: value for key, value in parsed["model"].items() if key != "vocab"}
        # Older files spell a merge "a b", newer ones ["a", "b"].
        model["merges"] = [merge_pair(merge) for merge in model.get("merges") or []]
        rules = {
            "model": model,
            "normalizer": parsed["normalizer"],
            "words": parsed["pre_tokenizer"],
            "flags": {token["content"]: _token_flags(token, parsed) for token in parsed["added_tokens"]},
        }
        identity["rules"] = _without_defaults(rules)
    return hash_json(identity)


def _token_flags(token: dict[str, Any], parsed: dict[str, Any]) -> dict[str, bool]:
    """The flags of an added token that can change the ids of a document.

    Those of a special token cannot, as a document's text never becomes one; nor can `normalized` without a
    normalizer.
    """
    if token["special"]:
        return {}
    flags = {name: bool(token[name]) for name in ("single_word", "lstrip", "rstrip")}
    return flags | {"plain": True, "normalized": token["normalized"] and parsed["normalizer"] is not None}


def merge_pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _without_defaults(value: Any) -> Any:
    """`value` without null, false and empty fields, which releases of `tokenizers` write or omit."""
    if not isinstance(value, dict):
        return value
    cleaned = {key: _without_defaults(item) for key, item in value.items() if key != "trim_offsets"}
    return {key: item for key, item in cleaned.items() if item not in (None, False, "", {}, [])}
