#!/usr/bin/env bash
# The whole flow of MTCNN, from an unpacked WIDER FACE folder to the tables: check, train, quantize for two
# targets, export, evaluate, bench. Every command is printed before it runs.
#
#   runs/mtcnn.sh DATA_DIR [OUT]          OUT: runs/mtcnn
#
# DATA_DIR holds WIDER_train/images, WIDER_val/images, wider_face_split/*_bbx_gt.txt and, for landmarks, the label
# files of RetinaFace (landmarks/{train,val}_label.txt). Started again, it goes on where it was stopped; a step
# whose result is newer than what it is made from is not done again, so other numbers need another OUT.
#
#   VARIANT=mtcnn-relu      what to train                         CALIBRATOR=max   how INT8 ranges are chosen
#   EPOCHS=1 STEPS=50       a short schedule for each network     IMAGES=64        photographs to calibrate with
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

run() {
    printf '+ %s\n' "$(printf '%q ' "$@")"
    "$@"
}

# made FILE FROM COMMAND...: run the command unless FILE is there and newer than FROM.
made() {
    local file=$1 from=$2
    shift 2
    if [[ -e $file && $file -nt $from ]]; then
        echo "= $file is there"
    else
        run "$@"
    fi
}

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
made "$out/float/model.json" "$split" \
    "${octavo[@]}" train "$variant" --data "$data" --out "$out/float" ${changes[@]+"${changes[@]}"}
made "$out/float/onet.onnx" "$out/float/onet.pt" "${octavo[@]}" export "$out/float"

for target in cpu tensorrt; do
    made "$out/int8-$target/onet.pt" "$out/float/onet.pt" \
        "${octavo[@]}" quantize "$out/float" --data "$data" --out "$out/int8-$target" --target "$target" \
        --calibrator "${CALIBRATOR:-max}" --images "${IMAGES:-64}"
    made "$out/int8-$target/onet.onnx" "$out/int8-$target/onet.pt" "${octavo[@]}" export "$out/int8-$target"
done

# Thresholds low, so that AP sees the whole curve; 12 pixels, the smallest face of the benchmark's hard list.
for model in float int8-cpu int8-tensorrt; do
    for backend in ${backends//,/ }; do
        made "$out/evaluate-$model-$backend.json" "$out/$model/onet.onnx" \
            "${octavo[@]}" evaluate "$out/$model" --data "$data" --split val --backend "$backend" \
            --min-face 12 --thresholds .5,.5,.3 --confidence .02 ${truth[@]+"${truth[@]}"} \
            --json "$out/evaluate-$model-$backend.json"
    done
done

made "$out/bench.json" "$out/int8-tensorrt/onet.onnx" \
    "${octavo[@]}" bench "$out/float" "$out/int8-cpu" "$out/int8-tensorrt" --size 640x480 --min-face 20 \
    --threads 1 --backend "$backends" --json "$out/bench.json"

echo "Models and results: $out"
