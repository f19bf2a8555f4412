"""Everything that knows open_clip: which CLIP, text, images, embeddings on disk."""

from .cached_teacher import CachedTeacher
from .source import TEACHERS, CLIPSource
from .store import EmbeddingStore, StoreMismatch
from .teacher import CLIPImageTeacher, LiveBatch
from .teacher_batch import TeacherBatch
from .text import CLIPTextEncoder
