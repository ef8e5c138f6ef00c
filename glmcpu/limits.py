"""Every bound on what comes from outside, in one place.

A checkpoint is data from a stranger. Each number it states is compared with one of these, in Python integers, before
anything is allocated or looped over. The values are far above what ChatGLM-6B needs and far below what hurts.
"""

# checkpoint files
CONFIG_BYTES = 1 << 20
INDEX_BYTES = 8 << 20
JSON_DEPTH = 32
JSON_TOKENS = 500_000
CHECKPOINT_FILES = 200
SAFETENSORS_HEADER_BYTES = 8 << 20
TENSORS = 4096
TENSOR_NAME_CHARS = 256
ZIP_MEMBERS = 4096
ZIP_DIRECTORY_BYTES = 4 << 20
ZIP_NAME_BYTES = 512
PICKLE_BYTES = 16 << 20
PICKLE_DEPTH = 64
PICKLE_OPCODES = 400_000
PICKLE_STACK = 100_000
TENSOR_RANK = 4

# tokenizer
TOKENIZER_BYTES = 16 << 20
TOKENIZER_PIECES = 500_000
PIECE_BYTES = 4096
CHARACTER_MAP_BYTES = 8 << 20

# architecture: each hyperparameter's largest value
CHANNELS = 1 << 16
LAYERS = 1024
HEADS = 1024
FEED_FORWARD = 1 << 20
VOCABULARY = 1 << 20
CONTEXT = 1 << 20

# adapters
PREFIX_TOKENS = 4096
LORA_RANK = 1024
LORA_ALPHA = 1 << 20

# conversation
INPUT_BYTES = 1 << 20
CONVERSATION_BYTES = 64 << 20
PAGE_REQUEST_BYTES = 16 << 20  # all conversations a browser keeps, which is 5 MB in most

# engine
PARALLEL = 1024

# hub
DOWNLOAD_RETRIES = 5
DOWNLOAD_STALL_S = 30.0
DOWNLOAD_BACKOFF_S = 1.0  # before the first retry; doubles with each
DOWNLOAD_WAIT_S = 60.0  # the longest wait a server may ask for
DOWNLOAD_REDIRECTS = 5
DOWNLOAD_PROGRESS_BYTES = 16 << 20  # this much in one attempt, and the count of failures starts again
HUB_FILES = 10_000

# server
HTTP_HEAD_BYTES = 16 << 10
HTTP_HEADERS = 100
HTTP_HEAD_S = 10.0
HTTP_BODY_BYTES = 1 << 20
HTTP_BODY_S = 30.0
HTTP_STALL_S = 60.0  # how long a client may leave its answer unread
HTTP_IDLE_S = 15
HTTP_CONNECTIONS = 1024
MESSAGES = 1024
STOP_STRINGS = 4
STOP_BYTES = 256
BIASED_IDS = 1024
CHOICES = 8
FIELDS = 128  # of a request, known or not
TOP_LOGPROBS = 20
SCHEMA_BYTES = 64 << 10
SCHEMA_MULTIPLE = 10_000  # the least common multiple of all multipleOf

# measuring
BENCH_BATCH = 1024
BENCH_REPEATS = 1000
EVAL_TOKENS = 1 << 22  # scored; what is kept of them takes 100 MB a model

# tuning
TUNING_EXAMPLES = 1 << 20
TUNING_BATCH = 4096
TUNING_STEPS = 10_000_000
