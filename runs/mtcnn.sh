#!/usr/bin/env bash
# The whole flow of MTCNN, from an unpacked WIDER FACE folder to the report: check, train, quantize for two targets,
# train on integers (QAT), tune, export, check, evaluate, validate, bench, sensitivity, report. Every command is
# printed before it runs.
#
#   runs/mtcnn.sh DATA_DIR [OUT]          OUT: runs/mtcnn
#
# DATA_DIR holds WIDER_train/images, WIDER_val/images, wider_face_split/*_bbx_gt.txt and, for landmarks, the label
# files of RetinaFace (landmarks/{train,val}_label.txt). Started again, it goes on where it was stopped; a step
# whose result is newer than what it is made from is not done again, so other numbers need another OUT.
#
#   VARIANT=mtcnn-relu      what to train                         CALIBRATOR=percentile   how INT8 ranges are chosen
#   EPOCHS=1 STEPS=200      a short schedule for each network     IMAGES=128       photographs to calibrate with
#   PRECISION=bf16-mixed    of training (32-true, 16-mixed)
#   SET="stages.pnet.schedule.seed=1 ..."   any numbers of the recipe (octavo recipe mtcnn-relu lists them)
#   GROUND_TRUTH=DIR        the benchmark's .mat files: easy, medium and hard as well
#   BACKENDS=onnxruntime,openvino           what to evaluate and bench in
#   OCTAVO=octavo           the command
set -euo pipefail

if [[ $# -lt 1 || $# -gt 2 || $1 == -* ]]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0 || exit 2
fi
data=$1
out=${2:-runs/mtcnn}
variant=${VARIANT:-mtcnn-relu}
backends=${BACKENDS:-onnxruntime,openvino}
read -ra octavo <<< "${OCTAVO:-octavo}"

source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

changes=()
for network in pnet rnet onet; do
    [[ -z ${EPOCHS:-} ]] || changes+=(--set "stages.$network.schedule.epochs=$EPOCHS")
    [[ -z ${STEPS:-} ]] || changes+=(--set "stages.$network.schedule.steps=$STEPS")
done
for change in ${SET:-}; do
    changes+=(--set "$change")
done
truth=()
[[ -z ${GROUND_TRUTH:-} ]] || truth=(--ground-truth "$GROUND_TRUTH")

mkdir -p "$out"
split=$data/wider_face_split/wider_face_val_bbx_gt.txt

made "$out/data.jpg" "$split" "${octavo[@]}" data "$data" --sheet "$out/data.jpg"

# A training that was stopped goes on, a finished one is not touched.
train=(--data "$data" --precision "${PRECISION:-bf16-mixed}" ${changes[@]+"${changes[@]}"})
made "$out/float/model.json" "$split" "${octavo[@]}" train "$variant" --out "$out/float" "${train[@]}"
made "$out/float/onet.onnx" "$out/float/onet.pt" "${octavo[@]}" export "$out/float"

# AP is measured from low scores on and from 12 pixels, the smallest face of the benchmark's hard list.
measuring=(--data "$data" --min-face 12 --thresholds .5,.5,.02)
for target in cpu tensorrt; do
    made "$out/ptq-$target/model.json" "$out/float/model.json" \
        "${octavo[@]}" quantize "$out/float" --data "$data" --out "$out/ptq-$target" --target "$target" \
        --calibrator "${CALIBRATOR:-percentile}" --images "${IMAGES:-128}"
    made "$out/qat-$target/model.json" "$out/ptq-$target/model.json" \
        "${octavo[@]}" train "$out/ptq-$target" --out "$out/qat-$target" "${train[@]}"
    for kind in ptq qat; do
        made "$out/$kind-$target/onet.onnx" "$out/$kind-$target/onet.pt" \
            "${octavo[@]}" export "$out/$kind-$target"
    done
    run "${octavo[@]}" check "$out/qat-$target"
done

# On training images that training kept out; before val is looked at.
made "$out/tune.png" "$out/qat-cpu/onet.onnx" \
    "${octavo[@]}" tune "$out/qat-cpu" --data "$data" --by f1 --chart "$out/tune.png" --json "$out/tune.json"

for model in float ptq-cpu qat-cpu ptq-tensorrt qat-tensorrt; do
    for backend in ${backends//,/ }; do
        made "$out/evaluate-$model-$backend.json" "$out/$model/onet.onnx" \
            "${octavo[@]}" evaluate "$out/$model" "${measuring[@]}" --split val --backend "$backend" \
            ${truth[@]+"${truth[@]}"} --json "$out/evaluate-$model-$backend.json"
    done
done
made "$out/bench.json" "$out/qat-tensorrt/onet.onnx" \
    "${octavo[@]}" bench "$out/float" "$out/qat-cpu" "$out/qat-tensorrt" --size 640x480 --min-face 20 \
    --threads 1 --backend "$backends" --json "$out/bench.json"
made "$out/sensitivity.png" "$out/ptq-cpu/model.json" \
    "${octavo[@]}" sensitivity "$out/ptq-cpu" --data "$data" --chart "$out/sensitivity.png"
made "$out/report.html" "$out/qat-tensorrt/onet.onnx" \
    "${octavo[@]}" report "$out/float" "$out/ptq-cpu" "$out/qat-cpu" "$out/qat-tensorrt" "${measuring[@]}" \
    ${truth[@]+"${truth[@]}"} --out "$out/report.html"

echo "Models and results: $out; begin with $out/report.html"

# The last step: it fails, and so does this script, where less than KEPT percent of the accuracy are kept.
made "$out/validate.json" "$out/qat-cpu/onet.onnx" \
    "${octavo[@]}" validate "$out/float" "$out/qat-cpu" "${measuring[@]}" --accuracy "${KEPT:-95}" \
    --json "$out/validate.json"
