#!/usr/bin/env bash
# AB-MIL, MHIM and the pooling baselines on real breast histology: 4 tasks, the table's 5 test folds, 3 seeds.
# benchmarks/idc_breast.sh DATA OUT      DATA: the folder with bags_*.csv, patches_*.csv and features_*.npz
set -euo pipefail
data=$1 out=$2
mhim=${MHIM:-.venv/bin/mhim}
# shellcheck source=idc_tables.sh
source "$(dirname "${BASH_SOURCE[0]}")/idc_tables.sh"
for task in presence_w20 burden_hi_lo presence_w50 presence_w10; do
  here=$out/$task
  bring_in "$data" "$task" "$here"
  runs=()
  for seed in 0 1 2; do
    $mhim split "$here/cohort.csv" --use-fold-column --seed $seed -o "$here/splits_$seed.csv"
    given=(--cohort "$here/cohort.csv" --features "$here/features" --splits "$here/splits_$seed.csv")
    given+=(--seed $seed --set train.threads=1 --workers 2)
    $mhim train "${given[@]}" --method mhim-v1 -o "$here/mhim_$seed"
    for model in mean max; do
      $mhim train "${given[@]}" --model $model --method supervised -o "$here/${model}_$seed"
    done
  done
  for name in mhim_0/baseline mhim_1/baseline mhim_2/baseline mhim_{0..2} mean_{0..2} max_{0..2}; do
    runs+=("$here/$name")
  done
  $mhim evaluate "${runs[@]}" --markdown "$here/results.md"
  $mhim heatmap "$here"/mhim_0 --with-baseline --max-slides 1 -o "$here/maps_0"
done
