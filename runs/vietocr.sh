#!/usr/bin/env bash
# The whole flow of a text reader, from the fonts of the machine to the comparison of its forms: render lines, train,
# quantize the CNN on calibrated grids and the sequence part dynamically, train on integers (QAT), export, evaluate, bench.
#
#   runs/vietocr.sh [OUT [DATA_DIR]]         OUT: runs/vietocr; DATA_DIR: lines of your own (path<TAB>text)
#
#   VARIANT=vietocr-small   or vietocr-seq2seq, vietocr-transformer
#   SET="stages.reader.schedule.epochs=4 ..."             any numbers of the recipe (octavo recipe vietocr-small)
#   PRECISION=bf16-mixed    of training (32-true)         SYNTHETIC=200000   lines rendered to learn from
#   QAT="qat.epochs=0.04 qat.learning_rate=0.05"          how long and how fast it learns on integers
#   IMAGES=200              lines to calibrate with       BACKENDS=onnxruntime,openvino
#   OCTAVO=octavo           the command
#
# Without DATA_DIR all lines are rendered. With it, half of the batches are its training lines, and calibration and the
# last evaluation use it. Fonts: those below /usr/share/fonts that have every character, such as Debian's fonts-dejavu,
# fonts-liberation, fonts-noto-core, fonts-roboto-unhinted, fonts-lato; some families are held out to measure on.
set -euo pipefail

if [[ $# -gt 2 || ${1:-} == -* ]]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0 || exit 2
fi
out=${1:-runs/vietocr}
data=${2:-}
variant=${VARIANT:-vietocr-small}
backends=${BACKENDS:-onnxruntime,openvino}
precision=${PRECISION:-bf16-mixed}
here=$(cd "$(dirname "$0")/.." && pwd)
read -ra octavo <<< "${OCTAVO:-octavo}"

source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

changes=(--set "stages.reader.sampling.synthetic=${SYNTHETIC:-200000}")
[[ -n $data ]] || changes+=(--set stages.reader.sampling.real=0)
for change in ${SET:-}; do
    changes+=(--set "$change")
done
qat=()
for change in ${QAT:-qat.epochs=0.04 qat.learning_rate=0.05}; do
    qat+=(--set "$change")
done

[[ -e $out/lines/val.txt ]] || run python "$here/benchmarks/vietocr_lines.py" "$out/lines"
learned=${data:-$out/lines}
run "${octavo[@]}" train "$variant" --data "$learned" --out "$out/float" --precision "$precision" "${changes[@]}"
run "${octavo[@]}" export "$out/float"
images=(--images "${IMAGES:-200}")
# The parts by different means: the CNN's ranges are calibrated, those of the sequence part found at each call.
run "${octavo[@]}" quantize "$out/float" --data "$learned" "${images[@]}" --out "$out/ptq" \
    --keep-float 'encoder/*' --keep-float 'decoder/*'
run "${octavo[@]}" quantize "$out/float" --data "$learned" "${images[@]}" --out "$out/dynamic" --keep-float 'cnn/*'
run "${octavo[@]}" quantize "$out/float" --data "$learned" "${images[@]}" --out "$out/both"
mkdir -p "$out/int8"
[[ -e $out/int8/samples ]] || ln -s "$(cd "$out/float/samples" && pwd)" "$out/int8/samples"
run "${octavo[@]}" train "$out/both" --data "$learned" --out "$out/int8" --precision "$precision" \
    "${changes[@]}" "${qat[@]}"
for model in ptq dynamic both int8; do
    run "${octavo[@]}" export "$out/$model"
done
for model in float ptq dynamic both int8; do
    for backend in ${backends//,/ }; do
        run "${octavo[@]}" evaluate "$out/$model" --data "$out/lines" --backend "$backend" \
            --json "$out/$model-$backend.json"
    done
done
[[ -z $data ]] || run "${octavo[@]}" evaluate "$out/int8" --data "$data" --json "$out/int8-own.json"
run "${octavo[@]}" bench "$out/float" "$out/int8" --image "$out/lines/val/0000.png" --backend "$backends" \
    --json "$out/bench.json"
