"""Files -> samples -> batches."""


class DatasetError(ValueError):
    """A data set, or an annotation in it, that cannot be used."""
