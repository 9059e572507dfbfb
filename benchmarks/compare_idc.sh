#!/usr/bin/env bash
# Eight models under one protocol on real breast histology: the table's 5 test folds, one of four tasks.
# benchmarks/compare_idc.sh DATA OUT [TASK [SEEDS]]
# DATA: the folder with bags_*.csv, patches_*.csv and features_*.npz. SEEDS: 0,1 by default; more seeds later go on.
# Training is short, for small bags: 40 epochs, stopped 10 after the best on validation. A fold of TransMIL takes a minute.
set -euo pipefail
data=$1 out=$2 task=${3:-presence_w20} seeds=${4:-0,1}
mhim=${MHIM:-.venv/bin/mhim}
# shellcheck source=idc_tables.sh
source "$(dirname "${BASH_SOURCE[0]}")/idc_tables.sh"
here=$out/$task
bring_in "$data" "$task" "$here"
$mhim doctor --cohort "$here/cohort.csv" --features "$here/features"
$mhim compare --cohort "$here/cohort.csv" --features "$here/features" --use-fold-column --seeds "$seeds" \
  --models abmil,mean,max,clam-mb,dtfd,transmil,mhim-abmil,mhim-transmil \
  --set transmil:model.landmarks=16 --epochs 40 --set train.patience=10 --set train.min_epochs=10 \
  --reference oral --workers 2 -o "$here/compare"
