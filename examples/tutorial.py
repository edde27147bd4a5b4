# %% [markdown]
# # Tutorial: guide a head and see what changes
#
# Two GPT-2s of a quarter of a million parameters learn the same text in the same order from the same random
# weights. In one, head 0 of every layer is guided towards the contrast words ("not", "but", …). Afterwards
# we measure both on held-out text, look at one head in both, and compare what guidance cost. On one CPU
# core this takes about half a minute.
#
# The file is in py:percent form: run it as a script, or open it as a notebook in an editor that knows the
# form.

# %%
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from transformers import GPT2LMHeadModel

from gaguide.attention import collect, draw_heatmaps, make_panels, save_figure
from gaguide.data import BlockStore, build_embedded_corpus, load_tokenizer
from gaguide.guidance import GuidancePlan, guide, measure
from gaguide.model import SIZES, scratch_config

torch.set_num_threads(1)

# %% [markdown]
# ## Text, tokenizer, blocks
#
# The embedded corpus is the language reference that every Python carries. `build_embedded_corpus` trains a
# small tokenizer on it and writes shards; a `BlockStore` reads blocks of `T` tokens from them. `gaguide
# data build` does the same for your own text.

# %%
folder = build_embedded_corpus(Path(mkdtemp()) / "shards", vocab_size=1024)
tokenizer = load_tokenizer(folder / "tokenizer")
training = BlockStore(folder, "train", block_length=64)
held_out = BlockStore(folder, "validation", block_length=64)
held_out_BT = torch.from_numpy(held_out.read(np.arange(min(64, len(held_out)))))
print(f"{len(training)} training blocks, {len(held_out)} held-out blocks of 64 tokens")

# %% [markdown]
# ## The plan
#
# A plan assigns patterns to heads. `1-negation` is the first experiment of the study: head 0 of every layer
# attends to the contrast words. `weight` multiplies the guidance loss in the sum with the language-model
# loss; a run this short needs more than the default (see "Weight" in the guide to guidance).

# %%
plan = GuidancePlan.from_experiment("1-negation", tokenizer, weight=30.0)
for (layer, head), guided in sorted(plan.resolve(n_layers=2, n_heads=4).items()):
    print(f"layer {layer}, head {head}: {guided.pattern.name}")

# %% [markdown]
# ## Train twins
#
# Both models start from the same seed and see the same blocks. `guide` attaches the plan to the model for
# the length of the block; after each forward pass `guidance.loss()` is the loss of the guided heads. The
# unguided twin opens the same block with `measure_only=True`: its guidance loss is zero and its attention
# is the model's own, to the last bit.


# %%
def train(guided: bool, steps: int = 150, batch: int = 16) -> GPT2LMHeadModel:
    """A nano GPT-2 after `steps` optimizer steps; all that differs between the twins is `guided`."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(scratch_config(SIZES["nano"], len(tokenizer), tokenizer.eos_token_id))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    order = np.random.default_rng(0).permutation(len(training))
    with guide(model, plan, measure_only=not guided) as guidance:
        for step in range(steps):
            blocks = order[np.arange(step * batch, (step + 1) * batch) % len(order)]
            ids_BT = torch.from_numpy(training.read(blocks))
            loss = model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss + guidance.loss()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


models = {"unguided": train(guided=False), "guided": train(guided=True)}

# %% [markdown]
# ## What changed on held-out text
#
# `measure` gives the language-model loss in nats per token and, for each guided head, the mean attention
# mass on the words it was guided to. The mass answers "did guidance do what it says?", the loss "at what
# price?".

# %%
measured = {name: measure(model, plan, held_out_BT.split(16)) for name, model in models.items()}
for name, result in measured.items():
    heads = ", ".join(f"layer {each.layer}: {each.attention:.3f}" for each in result.per_head)
    print(f"{name:>8}: lm loss {result.lm_loss:.3f}, attention on contrast words {heads}")

# %% [markdown]
# ## Look at a head
#
# `collect` returns the attention probabilities of chosen layers and heads; `make_panels` marks the guided
# words, and `draw_heatmaps` draws all panels on one scale. Rows are the tokens that look, columns the
# tokens they look at.

# %%
text = "It is not a copy, but the name is bound to it and does not change."
ids_T = torch.tensor(tokenizer(text)["input_ids"])
labels = [tokenizer.decode([token]) for token in ids_T.tolist()]
patterns = {place: guided.pattern for place, guided in plan.resolve(n_layers=2, n_heads=4).items()}
panels = []
for name, model in models.items():
    maps = collect(model, ids_T[None], layers=[1], heads=[0])
    panels += make_panels(name, maps, ids_T, labels, patterns)
save_figure(draw_heatmaps(panels), Path("tutorial-heads.png"))
for panel in panels:
    print(f"{panel.model:>8}, layer {panel.layer}, head {panel.head}: mass {panel.mass:.3f} in this sentence")

# %% [markdown]
# ## The same at scale
#
# The loop above is what `gaguide train` does with DeepSpeed, checkpoints, validation and a resumable order
# of blocks around it:
#
# ```console
# deepspeed --module gaguide.train --deepspeed zero2 --config gpt2-4-transition
# deepspeed --module gaguide.evaluate --model runs/gpt2-4-transition/model --tasks demo --output evaluation
# ```
#
# Whether moved attention helps a task is an empirical question: evaluate both twins on the same tasks and
# compare with intervals over several seeds, as `gaguide study` does.
