# Sourced by the scripts on real breast patches: bring_in DATA TASK OUT writes OUT/cohort.csv and OUT/features.
# DATA holds one bags_*.csv, one patches_*.csv and one features_*.npz; other patients' files may have other names.
one() {
  local found=("$1"/$2)
  [[ ${#found[@]} = 1 && -f ${found[0]} ]] || { echo "$1 needs exactly one file $2" >&2; exit 2; }
  echo "${found[0]}"
}

bring_in() {
  local features bags patches
  features=$(one "$1" "features_*.npz")
  bags=$(one "$1" "bags_*.csv")
  patches=$(one "$1" "patches_*.csv")
  $mhim convert "$features" --bags "$bags" --instances "$patches" --bag-id patient_id --label bag_label \
    --rows patch_indices --where "task=$2" --x x --y y --truth idc_label --fold fold \
    --encoder efficientnet-lite0-mid --tile-size-px0 50 -o "$3"
}
