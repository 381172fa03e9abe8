"""One detector in an environment of its own, answering JSON lines: the other end of peers.py.

    python peer_worker.py DETECTOR THREADS OPTIONS      OPTIONS: JSON, what the function of that name below takes

    {"do": "open"}                                      -> {"version": ...}
    {"do": "load", "name": ..., "path": x.npy}          -> {}              (h, w, 3) uint8 RGB: everyone sees the same
    {"do": "find", "name": ..., "lowest": .02 or null}  -> {"seconds": ..., "boxes": [[x1, y1, x2, y2, score], ...]}
    {"do": "memory"}                                    -> {"MB": ...}     the highest so far

Only the standard library is imported before "open", so that the memory then is that of the bare interpreter. A
detector is a function that opens it and returns (version, settle, find): find(image, lowest) keeps boxes down to the
score `lowest`, or those that the library's own default keeps (None); settle is called once all has warmed up.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Find = Callable[[Any, "float | None"], Any]
Opened = tuple[str, Callable[[], None], Find]


def octavo(threads: int, model: str, backend: str, min_face: float) -> Opened:
    import cv2
    import numpy as np

    import octavo

    cv2.setNumThreads(threads)
    opened = octavo.load(model, backend=backend, threads=threads)
    first, second, third = opened.settings().thresholds

    def settle() -> None:
        for network in opened.run.values():
            if hasattr(network, "settle"):  # OpenVINO: fixed graphs now, not once they have paid
                network.settle()

    def find(image: Any, lowest: float | None) -> Any:
        thresholds = (first, second, third if lowest is None else lowest)
        found = opened(image, min_face=min_face, thresholds=thresholds)
        return np.column_stack([found.xyxy, found.confidence])

    return octavo.__version__, settle, find


def facenet_pytorch(threads: int, min_face: float) -> Opened:
    import importlib.metadata

    import numpy as np
    import torch

    torch.set_num_threads(threads)
    stand_in_for_torchvision()
    from facenet_pytorch import MTCNN

    detector = MTCNN(min_face_size=min_face, keep_all=True)
    usual = detector.thresholds

    def find(image: Any, lowest: float | None) -> Any:
        detector.thresholds = usual if lowest is None else [*usual[:2], lowest]
        boxes, scores = detector.detect(image)
        return np.zeros((0, 5)) if boxes is None else np.column_stack([boxes, scores])

    return importlib.metadata.version("facenet-pytorch"), nothing, find


def mtcnn(threads: int, min_face: float) -> Opened:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import importlib.metadata

    import numpy as np
    import tensorflow

    tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
    tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    from mtcnn import MTCNN

    detector = MTCNN()

    def find(image: Any, lowest: float | None) -> Any:
        given = {} if lowest is None else {"threshold_onet": lowest}
        rows = detector.detect_faces(
            image, box_format="xyxy", output_type="numpy", min_face_size=min_face, **given
        )
        return np.asarray(rows)[:, 1:6].reshape(-1, 5)  # after the number of the image

    return importlib.metadata.version("mtcnn"), nothing, find


def yunet(threads: int, weights: str) -> Opened:
    import cv2
    import numpy as np

    cv2.setNumThreads(threads)
    detector = cv2.FaceDetectorYN.create(weights, "", (320, 320))
    usual = detector.getScoreThreshold()

    def find(image: Any, lowest: float | None) -> Any:
        detector.setScoreThreshold(usual if lowest is None else lowest)
        detector.setInputSize((image.shape[1], image.shape[0]))
        rows = detector.detect(image[:, :, ::-1])[1]  # takes BGR
        if rows is None:
            return np.zeros((0, 5))
        return np.column_stack([rows[:, :2], rows[:, :2] + rows[:, 2:4], rows[:, 14]])

    return f"OpenCV {cv2.__version__}", nothing, find


def nothing() -> None:
    pass


# torchvision's wheel is built against torch with CUDA and does not load beside the CPU build. facenet-pytorch uses
# one function of it to find faces: batched_nms, here with torchvision's loop (csrc/ops/cpu/nms_kernel.cpp, BSD),
# compiled, so that nothing is slower than with the original.
NMS = """
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
long nms(const float *b, const float *area, const long *order, long n, float threshold, char *dead, long *keep) {
    long kept = 0;
    for (long p = 0; p < n; p++) {
        long i = order[p];
        if (dead[i]) continue;
        keep[kept++] = i;
        float x1 = b[4*i], y1 = b[4*i+1], x2 = b[4*i+2], y2 = b[4*i+3], mine = area[i];
        for (long q = p + 1; q < n; q++) {
            long j = order[q];
            if (dead[j]) continue;
            float w = MAX(0.f, MIN(x2, b[4*j+2]) - MAX(x1, b[4*j]));
            float h = MAX(0.f, MIN(y2, b[4*j+3]) - MAX(y1, b[4*j+1]));
            if (w * h / (mine + area[j] - w * h) > threshold) dead[j] = 1;
        }
    }
    return kept;
}
"""


def stand_in_for_torchvision() -> None:
    """Modules torchvision.ops.boxes and torchvision.transforms with as much in them as facenet-pytorch imports."""
    import ctypes
    import subprocess
    import tempfile
    import types

    import torch

    with tempfile.TemporaryDirectory() as folder:
        library = os.path.join(folder, "nms.so")
        compiler = ["cc", "-O3", "-shared", "-fPIC", "-x", "c", "-", "-o", library, "-lm"]
        subprocess.run(compiler, input=NMS.encode(), check=True)
        compiled = ctypes.CDLL(library).nms
    pointer = ctypes.c_void_p
    compiled.argtypes = [pointer, pointer, pointer, ctypes.c_long, ctypes.c_float, pointer, pointer]
    compiled.restype = ctypes.c_long

    def batched_nms(boxes: Any, scores: Any, groups: Any, threshold: float) -> Any:
        """Of one image, as here: groups are all the same."""
        boxes = boxes.float().contiguous()
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        order = scores.sort(stable=True, descending=True).indices
        dead = torch.zeros(len(boxes), dtype=torch.int8)
        keep = torch.empty(len(boxes), dtype=torch.int64)
        places = (tensor.data_ptr() for tensor in (boxes, area, order))
        kept = compiled(*places, len(boxes), threshold, dead.data_ptr(), keep.data_ptr())
        return keep[:kept]

    for name in ("torchvision", "torchvision.ops", "torchvision.ops.boxes", "torchvision.transforms"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision.ops.boxes"].batched_nms = batched_nms  # type: ignore[attr-defined]
    sys.modules["torchvision.transforms"].functional = None  # type: ignore[attr-defined]  # of cut-out faces only


def peak_memory() -> float:
    """MB that this process held at its highest."""
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints does not belong between the answers
    detector, threads, options = globals()[sys.argv[1]], int(sys.argv[2]), json.loads(sys.argv[3])
    images: dict[str, Any] = {}
    settle: Callable[[], None] = nothing
    find: Find

    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if asked["do"] == "open":
                version, settle, find = detector(threads, **options)
                answer = {"version": version}
            elif asked["do"] == "load":
                import numpy

                images[asked["name"]] = numpy.load(asked["path"])
            elif asked["do"] == "settle":
                settle()
            elif asked["do"] == "find":
                started = time.perf_counter()
                boxes = find(images[asked["name"]], asked["lowest"])
                answer = {"seconds": time.perf_counter() - started, "boxes": boxes.tolist()}
            elif asked["do"] == "memory":
                answer = {"MB": peak_memory()}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
