#!/usr/bin/env bash
# Formulations under two optimizers, three seeds, on template brains or on real scans: 12 short fits,
# then their tables and the curves of Dice against steps.
# Usage: experiments/hypermorph.sh [OASIS_DIR] (a folder in the neurite-OASIS 2D layout)
set -euo pipefail
out=runs/hypermorph_template
data=()
if [ $# -gt 0 ]; then
  out=runs/hypermorph_oasis
  data=(--data.source OASIS2D --data.source.data_dir "$1" --data.split_seed 2
    --data.train_fraction 0.7334 --data.validation_fraction 0.1333)
fi
declare -A options=(
  [adam]=""
  [sgd]="--optimizer torch.optim.SGD --optimizer.lr 1e-3
    --optimizer.momentum 0.9 --optimizer.nesterov true"
)
for optimizer in adam sgd; do
  for formulation in default mip; do
    for seed in 0 1 2; do
      # shellcheck disable=SC2086  # the options are words
      mip-lightning fit --config experiments/hypermorph.yaml "${data[@]}" \
        --model.formulation "$formulation" --seed_everything "$seed" \
        --run_dir "$out/$optimizer-$formulation-$seed" --data.evaluation_pairs 10 \
        --trainer.max_epochs 8 --trainer.limit_train_batches 50 \
        --trainer.enable_checkpointing false --trainer.enable_progress_bar false \
        ${options[$optimizer]}
    done
  done
  python -m mip_lightning.report.figures convergence "$out/$optimizer"-* \
    --metric dice --out "$out/$optimizer.png"
done
