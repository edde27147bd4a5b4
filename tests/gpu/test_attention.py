"""Documents and backends on a GPU equal SDPA with masks: `make test-gpu`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from gaguide.attention import collect
from gaguide.guidance import Assignment, GuidancePlan, TokenSet, guide
from gaguide.model import documents
from gaguide.model.documents import document_mask, documents_as_mask
from gaguide.model.packed import isolate_documents, use_packed_attention
from tests.support.models import random_ids, tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
T = 64
PLAN = GuidancePlan((Assignment(TokenSet("some", frozenset(range(2, 20))), (1,), (0, 2)),))
POSITIONS = torch.cat([torch.arange(9), torch.arange(1), torch.arange(T - 10)]).expand(2, T)


def run(model: Any, **inputs: Any) -> list[torch.Tensor]:
    """Loss, losses of heads, and the norm of every gradient."""
    ids_BT = random_ids(2, T).cuda()
    model.zero_grad()
    with guide(model, PLAN) as guidance:
        loss = model(input_ids=ids_BT, labels=ids_BT, use_cache=False, **inputs).loss
        (loss + guidance.loss()).backward()
        norms = [each.grad.float().norm() for each in model.parameters() if each.grad is not None]
        return [each.detach().float() for each in (loss, *guidance.per_head().values(), *norms)]


def assert_all_close(got: list[torch.Tensor], want: list[torch.Tensor], apart: float) -> None:
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=apart, atol=apart)


@pytest.mark.parametrize("kind", ["gpt2", "llama-grouped-query"])
@pytest.mark.parametrize("dtype, apart", [(torch.float32, 1e-3), (torch.bfloat16, 5e-2)])
def test_documents_by_variable_length_attention(kind: str, dtype: torch.dtype, apart: float) -> None:
    """In fp32, which that kernel does not take, by the mask."""
    mine, theirs = (tiny_model(kind, attn_implementation="sdpa").to("cuda", dtype) for _ in range(2))
    isolate_documents(mine, use_packed_attention(mine), T)
    positions_BT = POSITIONS.cuda()
    mask = document_mask(documents.document_ids(positions_BT))
    want = run(theirs, position_ids=positions_BT, attention_mask=mask)
    assert_all_close(run(mine, position_ids=positions_BT), want, apart)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_variable_length_kernel_alone(groups: int) -> None:
    if not documents._has_kernel(torch.device("cuda", 0)):
        pytest.skip("this GPU or torch has no variable-length attention")
    qkv = [torch.randn(2, 4 // n, T, 64).to("cuda", torch.bfloat16) for n in (1, groups, groups)]
    marks = documents_as_mask(documents.document_ids(POSITIONS.cuda()))
    module: Any = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = groups, True

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the fallback ran")

    got = documents.by_document(refuse)(module, *qkv, marks, dropout=0.0, scaling=None)[0]
    q, k, v = (x.repeat_interleave(4 // x.shape[1], 1).float() for x in qkv)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, documents.dense_mask(marks))
    torch.testing.assert_close(got.float(), want.transpose(1, 2), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("backend", ["flash_attention_2", "flex_attention"])
def test_backends_that_need_a_gpu(backend: str) -> None:
    if backend == "flash_attention_2" and find_spec("flash_attn") is None:
        pytest.skip("flash_attn is not installed")
    dtype, apart = (torch.bfloat16, 5e-2) if backend.startswith("flash") else (torch.float32, 1e-3)
    mine, theirs = (
        tiny_model("llama-grouped-query", attn_implementation="sdpa").to("cuda", dtype) for _ in range(2)
    )
    mine.set_attn_implementation(backend)
    for padded in (False, True):
        mask = torch.ones(2, T, dtype=torch.int64, device="cuda")
        if padded:
            mask[0, :9] = 0
        got, want = (run(model, attention_mask=mask) for model in (mine, theirs))
        # Logits of padding, which count in this loss, are undefined: compare the heads' losses alone.
        assert_all_close(got[1:3] if padded else got, want[1:3] if padded else want, apart)
    maps = (collect(model, random_ids(2, T)).maps for model in (mine, theirs))
    assert_all_close(*(list(each.values()) for each in maps), apart)
