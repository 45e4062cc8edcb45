#!/usr/bin/env bash
# Scale-space hypernetworks: formulations under two optimizers, three seeds: 12 short fits and tests, then
# their table and the curves of accuracy or Dice against steps.
# Usage: experiments/scale_space.sh flowers DIR (torchvision's layout, as images of 64 x 64)
#        experiments/scale_space.sh oasis DIR (the neurite-OASIS 2D layout, 24 structures)
set -euo pipefail
study=$1
case $study in
  flowers)
    metric=accuracy
    data=(--data.data_dir "$2" --data.image_size 64 --data.num_workers 0 --data.num_test 500
      --trainer.max_epochs 15 --trainer.check_val_every_n_epoch 3)
    ;;
  oasis)
    metric=dice
    data=(--data.source OASIS2D --data.source.data_dir "$2" --model.primary.out_channels 25
      --trainer.max_epochs 6 --trainer.limit_train_batches 100 --trainer.check_val_every_n_epoch 1
      --trainer.limit_val_batches 20 --trainer.limit_test_batches 20)
    ;;
  *)
    echo "unknown study $study: choose flowers or oasis" >&2
    exit 2
    ;;
esac
declare -A options=(
  [adam]="--optimizer.lr 3e-4"
  [sgd]="--optimizer torch.optim.SGD --optimizer.lr 3e-3
    --optimizer.momentum 0.9 --optimizer.nesterov true"
)
for optimizer in adam sgd; do
  for formulation in default mip; do
    for seed in 0 1 2; do
      run=runs/scale_space_$study/$optimizer-$formulation-$seed
      # shellcheck disable=SC2086  # the options are words
      mip-lightning fit --config "experiments/scale_space_$study.yaml" "${data[@]}" \
        --model.formulation "$formulation" --seed_everything "$seed" --run_dir "$run" \
        --trainer.enable_progress_bar false --trainer.callbacks '[HoldMemory, CostCurve]' ${options[$optimizer]}
      mip-lightning test --ckpt_path "$run/checkpoints/best.ckpt"
    done
  done
  python -m mip_lightning.report.figures convergence "runs/scale_space_$study/$optimizer"-* \
    --metric "$metric" --out "runs/scale_space_$study/$optimizer.png"
done
python -m mip_lightning.report "runs/scale_space_$study"/*/test --metric "$metric" \
  --by optimizer.class_path model.init_args.formulation
