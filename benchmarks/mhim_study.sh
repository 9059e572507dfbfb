#!/usr/bin/env bash
# MHIM around AB-MIL, DSMIL and TransMIL against their own baselines, five seeds, published settings of CAMELYON16.
# benchmarks/mhim_study.sh synth OUT          120 synthetic slides of 90 cases, 4 folds
# benchmarks/mhim_study.sh idc OUT DATA       real breast patches, the table's 5 folds
# Then the plain aggregators of EQUAL once more with twice the schedule, which is what MHIM and its baseline have had
# together, and MHIM against those.
# By environment: MODELS SEEDS EPOCHS PATIENCE WORKERS EQUAL, and TASK of idc (presence_w20, presence_w50, ...).
# DSMIL and TransMIL are 128 wide (TransMIL with 32 landmarks), AB-MIL has its published 512: the bags are small.
set -euo pipefail
study=$1 out=$2 data=${3:-../shared/data/idc_breast_dev}
mhim=${MHIM:-.venv/bin/mhim} python=${PYTHON:-.venv/bin/python}
epochs=${EPOCHS:-60} patience=${PATIENCE:-20} workers=${WORKERS:-2}
read -ra models <<<"${MODELS-abmil dsmil transmil}"
read -ra seeds <<<"${SEEDS:-0 1 2 3 4}"
read -ra equal <<<"${EQUAL-abmil}"
export OMP_NUM_THREADS=1
# shellcheck source=idc_tables.sh
source "$(dirname "${BASH_SOURCE[0]}")/idc_tables.sh"
mkdir -p "$out"
case $study in
  synth)
    [[ -f $out/cohort/cohort.csv ]] || $mhim synth -o "$out/cohort" --slides 120 --cases 90 --seed 11 --workers 2
    $mhim tile "$out/cohort/cohort.csv" -o "$out/tiles" --target-mpp 0.75 --tile-px 96 --workers 2
    $mhim encode "$out/tiles" -o "$out/features" --encoder efficientnet-lite0-mid --workers 2
    table=$out/cohort/cohort.csv split=(--folds 4) extra=(--set train.standardise=true) shown=(--cohort "$table")
    ;;
  idc)
    bring_in "$data" "${TASK:-presence_w20}" "$out"
    table=$out/cohort.csv split=(--use-fold-column) extra=() shown=()
    ;;
  *) echo "study $study is unknown: synth or idc" >&2; exit 2 ;;
esac
declare -A small=([abmil]="" [dsmil]="--set model.dim=128" [transmil]="--set model.dim=128 --set model.landmarks=32")

train() { # model, seed, times the schedule, further options
  local model=$1 seed=$2 times=$3
  shift 3
  # shellcheck disable=SC2086
  $mhim train --cohort "$table" --features "$out/features" --splits "$out/splits_$seed.csv" \
    --preset "iccv2023/$model-camelyon16" --seed "$seed" --epochs $((times * epochs)) \
    --set train.patience=$((times * patience)) --set train.min_epochs=$((times * patience)) --set train.threads=1 \
    "${extra[@]}" ${small[$model]} --workers "$workers" "$@"
}

for seed in "${seeds[@]}"; do
  $mhim split "$table" "${split[@]}" --seed "$seed" -o "$out/splits_$seed.csv"
done
for model in "${models[@]}"; do
  runs=()
  for seed in "${seeds[@]}"; do
    train "$model" "$seed" 1 -o "$out/${model}_$seed"
    runs+=("$out/${model}_$seed")
  done
  $python benchmarks/mhim_study.py "${runs[@]}" "${shown[@]}" | tee "$out/$model.md"
done
for model in "${equal[@]}"; do
  runs=()
  for seed in "${seeds[@]}"; do
    train "$model" "$seed" 2 --method supervised -o "$out/${model}_long_$seed"
    runs+=("$out/${model}_$seed=$out/${model}_long_$seed")
  done
  $python benchmarks/mhim_study.py "${runs[@]}" "${shown[@]}" | tee "$out/${model}_equal.md"
done
