"""`batchnorm bench`: the layer beside torch's, Keras' and Flax' own, timed in turn, against what memory allows.

    cases       what is timed: a shape in a layout, a dtype, an operation, and the bytes that it must move
    contenders  who is timed, and which process each runs in: `by_torch`, `by_keras`, `by_flax`
    worker      such a process: prepares, checks against `truth`, times when it is told to
    measure     tells the processes what to do, one at a time: A B C, B C A, …
    results     what comes out; `goals` judges it, `screen` prints it, `chart` draws it

Nothing is imported here: a worker sets how memory is kept before it allocates any.
"""

from importlib.util import find_spec

from batchnorm.errors import MissingExtraError

if find_spec("torch") is None:
    raise MissingExtraError("batchnorm bench", "torch", "torch")
