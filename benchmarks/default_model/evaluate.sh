#!/usr/bin/env bash
# Every number of docs/results.md about the default model: benchmarks/default_model/evaluate.sh mp.parquet FOLDER
set -euo pipefail
table=$1 folder=$2
mkdir -p "$folder"
run() { ed3d evaluate "$table" --n-jobs 2 "${@:2}" --json "$folder/$1.json"; }

for protocol in blind primitive conventional; do
    run "$protocol" --protocol "$protocol" --split test
done
run prototype --protocol blind --split prototype_test
run symprec_001 --protocol blind --split test --limit 5000 --symprec 0.01 --control-rows 0
for noise in 0.05 0.2 0.6; do
    run "noise_$noise" --protocol blind --split test --limit 1000 --noise "$noise" --control-rows 0
done
for d_min in 1.2 2.0; do
    run "d_min_$d_min" --protocol blind --split test --limit 1000 --d-min "$d_min" --control-rows 0
done
run conventional_noise_0.05 --protocol conventional --split test --limit 1000 --noise 0.05 --control-rows 0
