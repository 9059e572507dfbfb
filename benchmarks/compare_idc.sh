#!/usr/bin/env bash
# Eight models under one protocol on real breast histology: the table's 5 test folds, 2 seeds, one of four tasks.
# benchmarks/compare_idc.sh DATA OUT [TASK]      DATA: the folder with bags_dev.csv, patches_dev.csv and the features
set -euo pipefail
data=$1 out=$2 task=${3:-presence_w20}
mhim=${MHIM:-.venv/bin/mhim}
here=$out/$task
$mhim convert "$data/features_effnetlite0_304d_dev.npz" --bags "$data/bags_dev.csv" \
  --instances "$data/patches_dev.csv" --bag-id patient_id --label bag_label --rows patch_indices \
  --where "task=$task" --x x --y y --truth idc_label --fold fold \
  --encoder efficientnet-lite0-mid --tile-size-px0 50 -o "$here"
$mhim doctor --cohort "$here/cohort.csv" --features "$here/features"
$mhim compare --cohort "$here/cohort.csv" --features "$here/features" --use-fold-column --seeds 0,1 \
  --models abmil,mean,max,clam-mb,dtfd,transmil,mhim-abmil,mhim-transmil \
  --set transmil:model.landmarks=16 --reference oral --workers 2 -o "$here/compare"
