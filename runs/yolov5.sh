#!/usr/bin/env bash
# The whole flow of YOLOv5, from published weights and an unpacked COCO folder to the comparison of runtimes: import,
# quantize (naive, calibrated, for TensorRT), sensitivity, mixed precision, QAT, export, check, evaluate, bench.
#
#   runs/yolov5.sh WEIGHTS COCO_DIR [OUT]      OUT: runs/yolov5
#
#   VARIANT=yolov5n         or yolov5s
#   CALIBRATOR=max          how INT8 ranges are chosen    IMAGES=64        photographs to calibrate with
#   BUDGET=.003             AP that mixed precision may lose               SENSITIVITY=104   images to find it with
#   SET="stages.detector.schedule.epochs=20 ..."           any numbers of the recipe (octavo recipe yolov5n lists them)
#   SPLIT=val               what to look for layers on: val to report a table, train to choose by
#   BACKENDS=onnxruntime,openvino                          what to evaluate and bench in
#   OCTAVO=octavo           the command
set -euo pipefail

if [[ $# -lt 2 || $# -gt 3 || $1 == -* ]]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0 || exit 2
fi
weights=$1
data=$2
out=${3:-runs/yolov5}
variant=${VARIANT:-yolov5n}
backends=${BACKENDS:-onnxruntime,openvino}
read -ra octavo <<< "${OCTAVO:-octavo}"

run() {
    printf '+ %s\n' "$(printf '%q ' "$@")"
    "$@"
}

changes=()
for change in ${SET:-}; do
    changes+=(--set "$change")
done

run "${octavo[@]}" data "$data"
run "${octavo[@]}" import "$variant" "$weights" --out "$out/float"
run "${octavo[@]}" export "$out/float"
run "${octavo[@]}" export "$out/float" --half --out "$out/half"
for target in cpu tensorrt; do
    run "${octavo[@]}" quantize "$out/float" --data "$data" --target "$target" --out "$out/ptq-$target" \
        --calibrator "${CALIBRATOR:-max}" --images "${IMAGES:-64}"
    run "${octavo[@]}" export "$out/ptq-$target"
    run "${octavo[@]}" check "$out/ptq-$target" --target "$target"
done
run "${octavo[@]}" sensitivity "$out/ptq-cpu" --data "$data" --by ap --depth 1 --split "${SPLIT:-train}" \
    --images "${SENSITIVITY:-104}" --budget "${BUDGET:-.003}" --out "$out/mixed" --chart "$out/sensitivity.png" \
    --json "$out/sensitivity.json"
run "${octavo[@]}" export "$out/mixed"
run "${octavo[@]}" train "$out/ptq-cpu" --data "$data" --out "$out/qat" "${changes[@]}"
run "${octavo[@]}" export "$out/qat"
for model in float half ptq-cpu mixed qat; do
    for backend in ${backends//,/ }; do
        run "${octavo[@]}" evaluate "$out/$model" --data "$data" --backend "$backend" \
            --json "$out/$model-$backend.json"
    done
done
run "${octavo[@]}" bench "$out/float" "$out/half" "$out/ptq-cpu" "$out/mixed" "$out/qat" --size 640x640 \
    --backend "$backends" --json "$out/bench.json"
