"""Language models of texts: vocabularies, an LSTM on token ids, sampling, and training.

model       the LSTM and its softmax                   settings    the settings of a training
training    one text in streams, with checkpoints      history     losses of a training
"""

from ..corpus import encode as encode
from ..corpus import side_by_side as side_by_side
from ..corpus import vocabulary_of as vocabulary_of
from .history import Losses as Losses
from .history import TextHistory as TextHistory
from .history import read_history as read_history
from .model import KIND as KIND
from .model import CharModel as CharModel
from .model import choose_token as choose_token
from .settings import CHANGEABLE as CHANGEABLE
from .settings import LEARNING_RATES as LEARNING_RATES
from .settings import OPTIMIZERS as OPTIMIZERS
from .settings import Settings as Settings
from .training import HELD_OUT as HELD_OUT
from .training import TextTraining as TextTraining
from .training import arrays_of as arrays_of
from .training import size_of_file as size_of_file
