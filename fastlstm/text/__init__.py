"""Language models of texts: vocabularies, an LSTM on token ids, sampling, and training.

vocabulary  characters or words, and their numbers      model       the LSTM and its softmax
sampling    temperature, top-k, top-p                   settings    all choices of a training
training    one text, walked along in streams, with checkpoints      history     what a training has measured
"""

from ..corpus import encode as encode
from ..corpus import side_by_side as side_by_side
from ..corpus import vocabulary_of as vocabulary_of
from .history import Losses as Losses
from .history import TextHistory as TextHistory
from .history import read_history as read_history
from .model import CharModel as CharModel
from .model import TextModel as TextModel
from .model import WordModel as WordModel
from .model import text_model as text_model
from .sampling import Draw as Draw
from .sampling import choose_token as choose_token
from .settings import CHANGEABLE as CHANGEABLE
from .settings import LEARNING_RATES as LEARNING_RATES
from .settings import OPTIMIZERS as OPTIMIZERS
from .settings import Settings as Settings
from .training import HELD_OUT as HELD_OUT
from .training import TextTraining as TextTraining
from .training import arrays_of as arrays_of
from .training import size_of_file as size_of_file
from .vocabulary import UNKNOWN as UNKNOWN
from .vocabulary import Characters as Characters
from .vocabulary import Vocabulary as Vocabulary
from .vocabulary import Words as Words
