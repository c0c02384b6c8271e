"""Errors that a user can cause: the command line prints them as one line and exits with 2."""


class GraphoptError(Exception):
    """The request or the input is at fault. The message names the file, the node and the cause, in one line."""


class InputError(GraphoptError):
    """A model or a samples file that cannot be read or does not hold what it should."""


class CalibrationError(InputError):
    """Calibration samples that cannot be read or that the model does not take: no pass is to blame for them."""


class OptionError(GraphoptError):
    """An unknown pass, option or preset, or a value out of its range."""


class PluginError(GraphoptError):
    """A plug-in that cannot be found or imported, or that breaks the contract of a pass."""


class ProviderError(GraphoptError):
    """An execution provider that this machine or this build of ONNX Runtime lacks, or that cannot run the model."""


class OutputError(GraphoptError):
    """A file that cannot be written: no such folder, no permission, no room."""
