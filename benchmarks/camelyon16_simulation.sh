#!/usr/bin/env bash
# The talk's main table and ablations on a CAMELYON16-like simulation. A simulation: never results on CAMELYON16.
# benchmarks/camelyon16_simulation.sh STEP OUT [PROTOCOL]
#   STEP      cohort | main | ablation | all
#   PROTOCOL  honest (default: an inner validation part chooses), or a published one that `mhim train --protocol`
#             knows, as iccv2023-camelyon16 (the test part chooses); each has its own folders and tables
# The rows AB-MIL, DSMIL and TransMIL are the plain baselines that MHIM starts from, with the preset's model settings.
# Sizes by environment: TILE_SCALE COMPONENTS EPOCHS SEEDS MODELS METHODS ABLATED; inputs: META, PATCHES.
set -euo pipefail
step=$1 out=$2 protocol=${3:-honest}
mhim=${MHIM:-.venv/bin/mhim} python=${PYTHON:-.venv/bin/python}
meta=${META:-../shared/data/camelyon16_tcga_meta} patches=${PATCHES:-../shared/data/idc_breast_dev}
scale=${TILE_SCALE:-0.04} components=${COMPONENTS:-64} epochs=${EPOCHS:-8} workers=${WORKERS:-2}
read -ra seeds <<<"${SEEDS:-2021 2022 2023}"
read -ra models <<<"${MODELS-max mean clam-sb clam-mb dtfd}"
read -ra methods <<<"${METHODS-abmil dsmil transmil}"
ablated=${ABLATED:-abmil}
read -ra transmil <<<"${TRANSMIL:---set model.dim=128 --set model.landmarks=32}" # the published width costs a second a step
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
data=$out/cohort here=$out/$protocol
named=() choice=()
if [[ $protocol != honest ]]; then
  named=(--protocol "$protocol")
else
  choice=(--use-fold-column)
fi

cohort() {
  mkdir -p "$out"
  $python - "$patches" "$out/pool.npz" <<'PY'
import csv, sys
import numpy as np
source, target = sys.argv[1:]
with open(f"{source}/patches_dev.csv", newline="") as file:
    rows = sorted(csv.DictReader(file), key=lambda row: int(row["patch_index"]))
features = np.load(f"{source}/features_effnetlite0_304d_dev.npz")["features"].astype(np.float32)
assert [int(row["patch_index"]) for row in rows] == list(range(len(features)))
label = np.array([int(row["idc_label"]) for row in rows])
np.savez(target, features=features, label=label, group=np.array([row["patient_id"] for row in rows]))
PY
  $mhim synth --like camelyon16 --meta "$meta" --pool "$out/pool.npz" -o "$data" --workers "$workers" \
    --set "tile_scale=$scale" --set "components=$components"
}

given() { # common options of a seed
  mkdir -p "$here"
  common=(--cohort "$data/cohort.csv" --features "$data/features" --splits "$here/splits_$1.csv" --epochs "$epochs"
    --workers "$workers" --set train.threads=1 --set train.standardise=true --set train.patience="$epochs"
    --set train.min_epochs=0 --set train.watch=false)
  $mhim split "$data/cohort.csv" "${choice[@]}" "${named[@]}" --seed "$1" -o "$here/splits_$1.csv"
}

table() {
  local seed model sized runs=()
  for seed in "${seeds[@]}"; do
    given "$seed"
    for model in "${models[@]}"; do
      $mhim train "${common[@]}" "${named[@]}" --seed "$seed" --model "$model" --method supervised -o "$here/main/${model}_$seed"
      runs+=("$here/main/${model}_$seed")
    done
    for model in "${methods[@]}"; do
      sized=()
      [[ $model != transmil ]] || sized=("${transmil[@]}")
      $mhim train "${common[@]}" "${named[@]}" --preset "iccv2023/$model-camelyon16" --seed "$seed" "${sized[@]}" \
        -o "$here/main/mhim-${model}_$seed"
      runs+=("$here/main/mhim-${model}_$seed/baseline" "$here/main/mhim-${model}_$seed")
    done
  done
  $mhim evaluate "${runs[@]}" --markdown "$here/main.md"
}

ablation() { # ABLATED is one aggregator; all seeds make one table, each with its own folds
  local seed sized=()
  for seed in "${seeds[@]}"; do given "$seed"; done
  [[ $ablated != transmil ]] || sized=("${transmil[@]}")
  $mhim ablate "${common[@]}" --splits "$here/splits_{seed}.csv" "${sized[@]}" "${named[@]}" --models "$ablated" \
    --seeds "$(IFS=,; echo "${seeds[*]}")" --like camelyon16 -o "$here/ablation"
}

case $step in
  cohort) cohort ;;
  main) table ;;
  ablation) ablation ;;
  all) cohort && table && ablation ;;
  *) echo "step $step is unknown: cohort, main, ablation or all" >&2; exit 2 ;;
esac
