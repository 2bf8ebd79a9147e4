"""Every error that ropepatch raises on purpose.

RopepatchError
├── MethodError
│   ├── UnknownMethodError (LookupError)            no method of that name
│   └── MethodOptionError (ValueError)              an option or a geometry that the maths cannot take
├── PatchError
│   ├── UnsupportedModelError (TypeError)           positions are kept in a shape that is not understood
│   ├── UnsupportedMechanismError (ValueError)      the method does not serve what this model has
│   ├── AlreadyScaledError (RuntimeError)           the checkpoint's config already scales its positions
│   ├── AlreadyPatchedError (RuntimeError)          a patch is live
│   ├── NotPatchedError (RuntimeError)              no patch is live
│   ├── NothingPatchedError (RuntimeError)          the model has nothing that the patch would change
│   ├── LengthError (ValueError)                    lengths or factors that contradict each other
│   ├── CacheError (ValueError)                     a key–value cache that does not fit the patch
│   ├── MaskError (ValueError)                      a mask or positions that cannot be gone by
│   └── PatchVerificationError (RuntimeError)       what is live is not what was patched
├── CheckpointError (OSError)                       a directory that cannot be read or written
│   ├── SidecarError (ValueError)                   `ropepatch.json` is missing, damaged or was edited
│   └── BaseMismatchError (ValueError)              an adapter meets a base with another patch
├── ConfigError (ValueError)                        a recipe or command line with mistakes
├── MissingExtraError (ImportError)                 a package that an extra of ropepatch brings
├── DataError (ValueError)                          text or tokens that cannot be used
│   ├── PromptLengthError                           a task needs more tokens than it may have
│   └── TokenCacheError (OSError)                   tokens cannot be kept on the disk
├── OutOfMemoryError (MemoryError)                  a run needs more memory than there is
├── NonFiniteError (FloatingPointError)             a loss, gradient or weight is NaN or infinite
└── ProcessError (RuntimeError)                     another process of the run failed, and says why

RopepatchWarning (UserWarning)                      what a user should know, though it stops nothing
"""


class RopepatchError(Exception):
    """Base of all errors below: what was wrong, what was found, what to do."""


class MethodError(RopepatchError):
    """Base of errors about methods and their options."""


class UnknownMethodError(MethodError, LookupError):
    """No method of that name is registered."""


class MethodOptionError(MethodError, ValueError):
    """An option or a geometry that the method's maths cannot take."""


class PatchError(RopepatchError):
    """Base of errors about patching a model."""


class UnsupportedModelError(PatchError, TypeError):
    """The model keeps its positions in a shape that is not understood."""


class UnsupportedMechanismError(PatchError, ValueError):
    """The method does not serve the mechanism that the model has."""


class AlreadyScaledError(PatchError, RuntimeError):
    """The checkpoint's own config already scales its positions."""


class AlreadyPatchedError(PatchError, RuntimeError):
    """A patch is live on the model."""


class NotPatchedError(PatchError, RuntimeError):
    """No patch is live on the model."""


class NothingPatchedError(PatchError, RuntimeError):
    """The model has nothing that the patch would change."""


class LengthError(PatchError, ValueError):
    """Lengths or factors contradict each other."""


class CacheError(PatchError, ValueError):
    """A key–value cache was filled under other scales, or cannot be turned to the ones needed."""


class MaskError(PatchError, ValueError):
    """An attention mask, or positions, that a patched model cannot take or would silently misread."""


class PatchVerificationError(PatchError, RuntimeError):
    """What is live on the model is not what was patched."""


class CheckpointError(RopepatchError, OSError):
    """A checkpoint directory cannot be read or written."""


class SidecarError(CheckpointError, ValueError):
    """A patch manifest is missing, damaged or was edited by hand."""


class BaseMismatchError(CheckpointError, ValueError):
    """An adapter was trained on another patch than its base carries."""


class ConfigError(RopepatchError, ValueError):
    """A recipe or command line has mistakes."""


class MissingExtraError(RopepatchError, ImportError):
    """A package that one of ropepatch's extras brings is not installed."""


class OutOfMemoryError(RopepatchError, MemoryError):
    """A run needs more memory than there is."""


class DataError(RopepatchError, ValueError):
    """Text or tokens cannot be used as asked."""


class PromptLengthError(DataError):
    """The prompts of a task do not fit into the length that was asked for."""


class TokenCacheError(DataError, OSError):
    """Tokens cannot be kept where they would be found again."""


class ProcessError(RopepatchError, RuntimeError):
    """Another process of the same run failed; its own error says why."""


class NonFiniteError(RopepatchError, FloatingPointError):
    """A loss, a gradient or a weight became NaN or infinite in training."""


class RopepatchWarning(UserWarning):
    """Something that a user should know, though it stops nothing."""
