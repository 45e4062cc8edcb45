#!/usr/bin/env bash
# Formulations under two optimizers, three seeds: 12 runs of fit and test, then the tables.
# Usage: experiments/bayesian_mnist.sh DATA_DIR (the folder that holds, or will hold, MNIST/raw)
set -euo pipefail
data_dir=$1
out=runs/bayesian_mnist
declare -A options=(
  [adam]="--trainer.max_epochs 2"
  [sgd]="--trainer.max_epochs 3 --optimizer torch.optim.SGD --optimizer.lr 3e-3
    --optimizer.momentum 0.9 --optimizer.nesterov true"
)
for optimizer in adam sgd; do
  for formulation in default mip; do
    for seed in 0 1 2; do
      run=$out/$optimizer-$formulation-$seed
      # shellcheck disable=SC2086  # the options are words
      mip-lightning fit --config experiments/bayesian_mnist.yaml --data.data_dir "$data_dir" \
        --model.formulation "$formulation" --seed_everything "$seed" --run_dir "$run" \
        ${options[$optimizer]}
      mip-lightning test --ckpt_path "$run/checkpoints/last.ckpt"  # no validation, no best
    done
  done
done
for optimizer in adam sgd; do
  echo "$optimizer"
  python -m mip_lightning.report "$out/$optimizer"-*/test
done
