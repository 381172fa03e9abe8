#!/usr/bin/env bash
# The whole flow of slim or RFB, from published weights and an unpacked WIDER FACE folder to the comparison of runtimes:
# import, train on, quantize for two targets, train on integers (QAT), export, convert, evaluate, bench.
#
#   runs/slim.sh WEIGHTS DATA_DIR [OUT]      OUT: runs/slim
#
#   VARIANT=slim            or rfb                        PRECISION=bf16-mixed    of float training (32-true)
#   SET="stages.detector.schedule.epochs=4 ..."           any numbers of the recipe (octavo recipe slim lists them)
#   CALIBRATOR=max          how INT8 ranges are chosen    IMAGES=128       photographs to calibrate with
#   BACKENDS=onnxruntime,openvino                         what to evaluate and bench in
#   OCTAVO=octavo           the command
set -euo pipefail

if [[ $# -lt 2 || $# -gt 3 || $1 == -* ]]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0 || exit 2
fi
weights=$1
data=$2
out=${3:-runs/slim}
variant=${VARIANT:-slim}
backends=${BACKENDS:-onnxruntime,openvino}
read -ra octavo <<< "${OCTAVO:-octavo}"

source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

changes=()
for change in ${SET:-}; do
    changes+=(--set "$change")
done

run "${octavo[@]}" import "$variant" "$weights" --out "$out/imported"
run "${octavo[@]}" train "$out/imported" --data "$data" --out "$out/float" \
    --precision "${PRECISION:-bf16-mixed}" "${changes[@]}"
run "${octavo[@]}" export "$out/float"
for target in cpu arm; do
    run "${octavo[@]}" quantize "$out/float" --data "$data" --target "$target" --out "$out/ptq-$target" --equalize \
        --calibrator "${CALIBRATOR:-max}" --images "${IMAGES:-128}"
    run "${octavo[@]}" train "$out/ptq-$target" --data "$data" --out "$out/int8-$target" "${changes[@]}"
done
run "${octavo[@]}" export "$out/int8-cpu"
run "${octavo[@]}" check "$out/int8-cpu"
for model in float int8-cpu; do
    for backend in ${backends//,/ }; do
        run "${octavo[@]}" evaluate "$out/$model" --data "$data" --backend "$backend" \
            --json "$out/$model-$backend.json"
    done
done
run "${octavo[@]}" bench "$out/float" "$out/int8-cpu" --size 320x240 --backend "$backends" --json "$out/bench.json"
if python -c 'import ncnn, pnnx' 2> /dev/null; then
    run "${octavo[@]}" convert "$out/float" --to ncnn
    run "${octavo[@]}" convert "$out/int8-arm" --to ncnn
    for model in float int8-arm; do
        run "${octavo[@]}" evaluate "$out/$model" --data "$data" --backend ncnn --json "$out/$model-ncnn.json"
    done
fi
