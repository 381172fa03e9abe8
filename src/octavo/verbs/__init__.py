"""The verbs as Python functions over model folders; the command line adds only options and printing.

    ls  data  recipe  import_  train  average  quantize  export  convert  sensitivity  inspect  check  explain  predict
    evaluate  tune  validate  bench  report

A verb is a file of its name here, and `verbs.predict` is the function in it. What differs between families is asked
of the family's own modules (octavo.models). Nothing heavy is imported before a verb needs it. Long verbs take
`progress(done, total)`. Wrong arguments raise ValueError, a name of nothing its subclass UnknownName, settings that a
model refuses WrongSetting.
"""

from octavo.verbs.average import average
from octavo.verbs.bench import bench
from octavo.verbs.check import check, check_targets
from octavo.verbs.convert import convert, formats
from octavo.verbs.data import data, task_of_data
from octavo.verbs.evaluate import evaluate, judge, judge_on, task_of
from octavo.verbs.explain import explain
from octavo.verbs.export import Lowered, export
from octavo.verbs.float_model import PREPROCESSING
from octavo.verbs.import_ import import_
from octavo.verbs.inspect import inspect
from octavo.verbs.model import Model, WrongSetting, load, ls, row
from octavo.verbs.photographs import SAMPLES, samples
from octavo.verbs.predict import Result, predict
from octavo.verbs.quantize import calibrators, quantize, targets
from octavo.verbs.recipe import family_of, recipe
from octavo.verbs.report import report
from octavo.verbs.sensitivity import Sensitivity, sensitivity
from octavo.verbs.train import train
from octavo.verbs.tune import Tuned, tune
from octavo.verbs.validate import Bounds, Validation, validate

# Imported at once, not at first use: importing the file of a verb would else put the file in its function's place.
__all__ = [
    "PREPROCESSING",
    "SAMPLES",
    "Bounds",
    "Lowered",
    "Model",
    "Result",
    "Sensitivity",
    "Tuned",
    "Validation",
    "WrongSetting",
    "average",
    "bench",
    "calibrators",
    "check",
    "check_targets",
    "convert",
    "data",
    "evaluate",
    "explain",
    "export",
    "family_of",
    "formats",
    "import_",
    "inspect",
    "judge",
    "judge_on",
    "load",
    "ls",
    "predict",
    "quantize",
    "recipe",
    "report",
    "row",
    "samples",
    "sensitivity",
    "targets",
    "task_of",
    "task_of_data",
    "train",
    "tune",
    "validate",
]
