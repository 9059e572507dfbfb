#!/usr/bin/env bash
# Eight models under one protocol on real breast histology: the table's 5 test folds, one of four tasks.
# benchmarks/compare_idc.sh DATA OUT [TASK [SEEDS]]
# DATA: the folder with bags_*.csv, patches_*.csv and features_*.npz. SEEDS: 0,1 by default; more seeds later go on.
# Training is short, for small bags: 40 epochs, stopped 10 after the best on validation. A fold of TransMIL takes a minute.
set -euo pipefail
data=$1 out=$2 task=${3:-presence_w20} seeds=${4:-0,1}
mhim=${MHIM:-.venv/bin/mhim}
one() { # the one file of a folder with such a name: other patients' files may be called otherwise than _dev
  local found=("$1"/$2)
  [[ ${#found[@]} = 1 && -f ${found[0]} ]] || { echo "$1 needs exactly one file $2" >&2; exit 2; }
  echo "${found[0]}"
}
features=$(one "$data" "features_*.npz")
bags=$(one "$data" "bags_*.csv")
patches=$(one "$data" "patches_*.csv")
here=$out/$task
$mhim convert "$features" --bags "$bags" \
  --instances "$patches" --bag-id patient_id --label bag_label --rows patch_indices \
  --where "task=$task" --x x --y y --truth idc_label --fold fold \
  --encoder efficientnet-lite0-mid --tile-size-px0 50 -o "$here"
$mhim doctor --cohort "$here/cohort.csv" --features "$here/features"
$mhim compare --cohort "$here/cohort.csv" --features "$here/features" --use-fold-column --seeds "$seeds" \
  --models abmil,mean,max,clam-mb,dtfd,transmil,mhim-abmil,mhim-transmil \
  --set transmil:model.landmarks=16 --epochs 40 --set train.patience=10 --set train.min_epochs=10 \
  --reference oral --workers 2 -o "$here/compare"
