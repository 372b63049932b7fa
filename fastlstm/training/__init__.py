"""Training: one loop over epochs and batches, with hooks, and a history of named columns.

history     what was measured, and when       loop        epochs, batches, when to stop
callbacks   the hooks, and what hangs there: progress, evaluation, checkpoints, signals
"""

from .callbacks import Callback as Callback
from .callbacks import Checkpoint as Checkpoint
from .callbacks import Evaluation as Evaluation
from .callbacks import Record as Record
from .callbacks import SaveError as SaveError
from .callbacks import StopOnSignal as StopOnSignal
from .history import History as History
from .loop import Diverged as Diverged
from .loop import Loop as Loop
from .loop import Task as Task
from .progress import Progress as Progress
